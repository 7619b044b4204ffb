"""Writes report.html: one self-contained page with the numbers, the plots and every case."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.stage_main import stage_main
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """`mcr report --config=FILE.py --workdir=DIR`."""
    stage_main("report", __doc__, argv, run)


def run(experiment: Experiment) -> None:
    """Writes the page."""
    from mcr_jax.report.page import report

    path = report(experiment.workdir, experiment.config, experiment.eval_cases())
    console.say(f"report: {path}")
