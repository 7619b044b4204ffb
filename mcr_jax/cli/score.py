"""Computes results.json from the ledger and prints its table."""

from collections.abc import Sequence
from typing import Any

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, run_stage


def main(argv: Sequence[str]) -> None:
    """`mcr score --config=FILE.py --workdir=DIR`."""
    run_stage("score", __doc__, argv, lambda experiment: show(run(experiment)))


def run(experiment: Experiment) -> dict[str, Any]:
    """Scores; returns the contents of results.json."""
    from mcr_jax.score.run import score

    results = score(experiment.workdir, experiment.config)
    console.say(f"score: {experiment.workdir.results}")
    return results


def show(results: dict[str, Any]) -> None:
    """Prints the table of `results`."""
    from rich.console import Console

    from mcr_jax.score.table import table

    Console().print(table(results))
