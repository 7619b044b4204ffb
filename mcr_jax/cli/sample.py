"""Draws N completions of every case from every model of the config, into the ledger."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, devices, run_stage
from mcr_jax.sigterm import stoppable


def main(argv: Sequence[str]) -> None:
    """`mcr sample --config=FILE.py --workdir=DIR`."""
    run_stage("sample", __doc__, argv, run)


def ready(experiment: Experiment) -> None:
    """Raises UsageError if a model to sample is none: better before hours of work than after."""
    from mcr_jax.sample import check

    check(experiment.config)


def run(experiment: Experiment) -> None:
    """Samples what is missing.

    Raises:
      Stopped: SIGTERM came; every completion that was finished is in the ledger.
    """
    from mcr_jax.sample import sample

    e = experiment
    ready(e)
    with stoppable("stopped by SIGTERM; every finished completion is kept, call again to go on"):
        e.refuse_other(e.origin())
        sampled = sample(e.workdir, e.config, e.shape, e.eval_cases(), e.tokenizer, e.prompt)
    e.workdir.note("sample", {"prompt": e.prompt.digest, "seed": e.config.seed, **devices()})
    for name, drawn in sampled.items():
        done = "nothing to do"
        if drawn.summary.asked:
            rate = drawn.tokens / max(drawn.seconds, 1e-9)
            done = f"{drawn.summary.asked} drawn now, {rate:,.0f} tokens/s with compilation"
        console.say(f"sample: {name}: {drawn.summary.total} completions, {done}")
