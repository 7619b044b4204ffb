"""Draws N completions of every case from every model of the config, into the ledger."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, devices, run_stage
from mcr_jax.errors import Stopped


def main(argv: Sequence[str]) -> None:
    """`mcr sample --config=FILE.py --workdir=DIR`."""
    run_stage("sample", __doc__, argv, run)


def run(experiment: Experiment) -> None:
    """Samples what is missing.

    Raises:
      Stopped: SIGTERM came; every completion that was finished is in the ledger.
    """
    from mcr_jax.sample import sample

    e = experiment
    with _stoppable():
        e.refuse_other(e.origin())
        sampled = sample(e.workdir, e.config, e.shape, e.eval_cases(), e.tokenizer, e.prompt)
    e.workdir.note("sample", {"prompt": e.prompt.digest, "seed": e.config.seed, **devices()})
    for name, drawn in sampled.items():
        done = "nothing to do"
        if drawn.summary.asked:
            rate = drawn.tokens / max(drawn.seconds, 1e-9)
            done = f"{drawn.summary.asked} drawn now, {rate:,.0f} tokens/s with compilation"
        console.say(f"sample: {name}: {drawn.summary.total} completions, {done}")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, but with the status that says: call again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        raise Stopped(told)

    told = "stopped by SIGTERM; every finished completion is kept, call again to go on"
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:
        # What was under way may have taken it for a fault of its own.
        if asked.is_set() and not isinstance(error, Stopped):
            raise Stopped(told) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
