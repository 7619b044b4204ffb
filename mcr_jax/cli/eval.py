"""Sample, judge, score and report in one; each goes on where it was and does nothing twice."""

from collections.abc import Sequence

from mcr_jax import artifacts, console
from mcr_jax.cli import judge, report, sample, score
from mcr_jax.cli.stage_main import stage_main
from mcr_jax.errors import McrError
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """`mcr eval --config=FILE.py --workdir=DIR`."""
    stage_main("eval", __doc__, argv, run)


def run(experiment: Experiment) -> None:
    """Evaluates, or says that it is done; ends with the table.

    Raises:
      McrError: too many verdicts are missing; what is there is scored and reported.
    """
    if experiment.finished("eval"):
        console.say(f"eval: nothing to do, all of it is in {experiment.workdir.path}")
        score.show(artifacts.results(experiment.workdir))
        return
    sample.ready(experiment)
    judge.ready(experiment)
    sample.run(experiment)
    whole, problem = judge.run(experiment)
    results = score.run(experiment)
    report.run(experiment)
    if whole:
        experiment.finish("eval")
    score.show(results)
    if problem:
        raise McrError(problem)
