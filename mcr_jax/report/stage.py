"""The report stage: writes one self-contained page with numbers, plots and every case."""

from mcr_jax import console
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.report.page import report


def run(experiment: Experiment) -> None:
    """Writes report.html."""
    path = report(experiment.workdir, experiment.config, experiment.eval_cases())
    console.say(f"report: {path}")
