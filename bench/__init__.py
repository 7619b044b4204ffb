"""Benchmarks against a peer in the same run: `python -m bench.NAME` prints JSON lines.

In an installed wheel the command is `python -m mcr_jax.bench.NAME`. The extra `bench` installs the
peers: `pip install -e '.[bench]'`. The rest of the package never imports this folder.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence


def line(*, bench: str, ours: float, peer: float, unit: str, shape: str, device: str, **more):
    """Prints the result. For rates, a `ratio` above one means that ours is faster."""
    rates = {"ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ours / peer, 3)}
    result = {"bench": bench, **rates, "unit": unit, "shape": shape, "device": device}
    print(json.dumps(result | more), flush=True)


def alternate(ours: Callable, theirs: Callable, runs: int) -> tuple[float, float]:
    """Runs both in turns; returns the median seconds of each."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(runs):
        for call, into in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def fastest(sizes: Sequence[int], make: Callable[[int], Callable[[], int]]) -> int:
    """Returns the size with the most tokens/s; `make(size)` returns a call that counts tokens."""

    def rate(size: int) -> float:
        call, start = make(size), time.perf_counter()
        return call() / (time.perf_counter() - start)

    return sizes[0] if len(sizes) == 1 else max(sizes, key=rate)


def timed(call: Callable[[], object], runs: int) -> list[float]:
    """Returns the seconds of each call, after two warm-up calls."""
    times = []
    for _ in range(2 + runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[2:]


def matmul_size(platform: str) -> int:
    """Returns the side of square matrices whose product fills a device."""
    return 512 if platform == "cpu" else 8192
