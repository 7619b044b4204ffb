"""Outage of a service in the middle of a run, which must resume by itself.

    python -m bench.outage --away=30   # seconds, at 64 calls in flight, with the waits of real runs

Prints the progress line of each second, then one JSON line.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from mcr_jax.generate import driver
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Ledger
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis

from .judge import MODEL, SCOPE, jobs
from .loopback import Loopback


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--away", type=float, default=30.0)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--in_flight", type=int, default=64)
    flags = parser.parse_args()
    work, reader = jobs(flags.calls), Reader(parse=diagnosis.parse, name=diagnosis.READING)
    with ExitStack() as first, ExitStack() as second, tempfile.TemporaryDirectory() as folder:
        url = first.enter_context(Loopback(delay=0.05))
        os.environ.update(GOOGLE_GEMINI_BASE_URL=url, GEMINI_API_KEY="loopback")
        generator, over = Gemini(MODEL, concurrency=flags.in_flight), threading.Event()

        def outage() -> None:
            time.sleep(2)
            first.close()
            for _ in range(round(flags.away)):
                time.sleep(1)
                print(generator.pacer.status(), flush=True)
            second.enter_context(Loopback(delay=0.05, port=int(url.rpartition(":")[2])))
            while not over.wait(1):
                print(generator.pacer.status(), flush=True)

        thread = threading.Thread(target=outage)
        with Ledger(Path(folder) / "ledger.sqlite") as ledger:
            start = time.monotonic()
            thread.start()
            summary = driver.run(SCOPE, work, generator, ledger, reader=reader)
            seconds, rows = time.monotonic() - start, ledger.count()
        over.set()
        thread.join()
    result = {"bench": "outage", "away": flags.away, "in_flight": flags.in_flight}
    result |= {"settled": summary.settled, "rows": rows, "seconds": round(seconds, 1)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
