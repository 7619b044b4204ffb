"""Draws N completions of every case from every model of the config, into the ledger."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, devices, run_stage


def main(argv: Sequence[str]) -> None:
    """`mcr sample --config=FILE.py --workdir=DIR`."""
    run_stage("sample", __doc__, argv, run)


def run(experiment: Experiment) -> None:
    """Samples what is missing."""
    from mcr_jax.sample import sample

    e = experiment
    e.refuse_other(e.origin())
    sampled = sample(e.workdir, e.config, e.shape, e.eval_cases(), e.tokenizer, e.prompt)
    e.workdir.note("sample", {"prompt": e.prompt.digest, "seed": e.config.seed, **devices()})
    for name, summary in sampled.models.items():
        done = f"{summary.asked} drawn now" if summary.asked else "nothing to do"
        console.say(f"sample: {name}: {summary.total} completions, {done}")
