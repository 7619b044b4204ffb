"""Benchmarks against a peer in the same run: `python -m bench.NAME` prints one JSON line each.

They need the peer: `pip install -e '.[bench]'`. The package never imports them.
"""

import json


def line(*, bench: str, ours: float, peer: float, unit: str, shape: str, device: str, **more):
    """Prints the result; `ratio` above one says that ours is better, for rates."""
    figures = {"ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ours / peer, 3)}
    told = {"bench": bench, **figures, "unit": unit, "shape": shape, "device": device}
    print(json.dumps(told | more), flush=True)
