"""Computes results.json from the ledger and prints its table."""

from collections.abc import Sequence
from typing import Any

from mcr_jax import console
from mcr_jax.cli.stage_main import stage_main
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """`mcr score --config=FILE.py --workdir=DIR`."""
    stage_main("score", __doc__, argv, lambda experiment: show(run(experiment)))


def run(experiment: Experiment) -> dict[str, Any]:
    """Scores; returns the contents of results.json."""
    from mcr_jax.judge.ask import readings
    from mcr_jax.score.results import score

    results = score(experiment.workdir, experiment.config)
    console.say(f"score: {experiment.workdir.results}")
    judge = results["judge"]
    if judge.get("readings") != readings(experiment.config):
        console.say(
            "score: the verdicts may have been read by other rules than this config's; `mcr judge` "
            "reads their replies again without a call"
        )
    if "note" in judge:
        console.say(f"score: {judge['note']}")
        return results
    for stage, count in judge["verdicts"].items():
        if left := count["wanted"] - count["settled"]:
            console.say(
                f"score: {left} of {count['wanted']} {stage} verdicts are missing and count as "
                "unresolved; run `mcr judge` again"
            )
    return results


def show(results: dict[str, Any]) -> None:
    """Prints the table of `results`."""
    from rich.console import Console

    from mcr_jax.score.table import table

    Console().print(table(results))
