"""Sampling of 897 x 10 completions from a failing endpoint, killed on the way.

    python -m bench.completions --share=0.2 --kills=3

`mcr sample` asks `bench.loopback` and is killed (-9) at random completions, then called again until
it is done. Prints one JSON line: completions that are missing, and questions that the server
answered whole more than once. Only what was in flight at a kill may be among these.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from mcr_jax import synthetic

from .loopback import Loopback

IN_FLIGHT = 32
DONE, STOPPED, MOST_CALLS = 0, 75, 20


def command(folder: Path, url: str, samples: int, late: float) -> list[str]:
    """Returns the command that samples; it prepares the dataset first, if it is not there."""
    return [
        *(sys.executable, "-m", "mcr_jax", "sample", "--config=eval"),
        *(f"--workdir={folder / 'run'}", f"--config.data.data_dir={folder / 'data'}"),
        f"--config.endpoints=here={url}/v1",
        "--config.sample.models=m=here:loopback-1",
        *(f"--config.sample.n={samples}", f"--config.sample.concurrency={IN_FLIGHT}"),
        f"--config.sample.timeout={0.75 * late}",
    ]


def written(ledger: Path) -> collections.Counter[tuple[str, int]]:
    """Returns how many answers each (case, sample) has in the ledger, which may not exist yet."""
    query = "SELECT case_fingerprint, sample FROM attempts WHERE outcome = 'OK'"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
            return collections.Counter(db.execute(query).fetchall())
    except sqlite3.OperationalError:
        return collections.Counter()


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.2, help="of failing calls")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--cases", type=int, default=897)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--late", type=float, default=1.0, help="seconds of a late reply")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    total = flags.cases * flags.samples
    random_ = random.Random(flags.seed)
    kills = collections.deque(sorted(random_.sample(range(1, total), flags.kills)))
    start, statuses, killed_at = time.monotonic(), [], []
    server = Loopback(faults=flags.share, late=flags.late)
    with tempfile.TemporaryDirectory() as name, server as url:
        folder = Path(name)
        source = folder / "cases.jsonl"
        cases = synthetic.cases(0, {"test": flags.cases, "train": 8, "val": 8})
        source.write_text("".join(json.dumps(dataclasses.asdict(case)) + "\n" for case in cases))
        build = ("build", f"--source={source}", f"--data_dir={folder / 'data'}")
        subprocess.run([sys.executable, "-m", "mcr_jax", *build], check=True, stdout=sys.stderr)
        ledger = folder / "run" / "ledger.sqlite"
        while not statuses or (statuses[-1] != DONE and len(statuses) < MOST_CALLS):
            with subprocess.Popen(
                command(folder, url, flags.samples, flags.late),
                stdout=sys.stderr,
                env={**os.environ, "OPENAI_API_KEY": ""},
            ) as run:
                while run.poll() is None:
                    if kills and (there := written(ledger).total()) >= kills[0]:
                        kills.popleft()
                        killed_at.append(there)
                        run.kill()
                    time.sleep(0.05)
            statuses.append(run.returncode)
        with urllib.request.urlopen(f"{url}/answered") as reply:
            told = json.load(reply)
        rows = written(ledger)
    times = {int(n): questions for n, questions in told["times"].items()}
    result = {
        "bench": "completions",
        "share": flags.share,
        "completions": total,
        "missing": total - len(rows),
        "written_twice": rows.total() - len(rows),
        "calls": told["calls"],
        "answered_again": sum((n - 1) * questions for n, questions in times.items()),
        "in_flight": IN_FLIGHT,
        "killed_at": killed_at,
        "statuses": statuses,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
