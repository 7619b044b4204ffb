"""Samples, judges, scores and reports; each stage resumes and repeats no work."""

from collections.abc import Sequence

from mcr_jax import artifacts, console
from mcr_jax.cli.score import show
from mcr_jax.cli.stage_main import stage_main
from mcr_jax.errors import McrError
from mcr_jax.experiment import seal
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """Runs `mcr eval --config=FILE.py --workdir=DIR`."""
    stage_main("eval", __doc__, argv, evaluate)


def evaluate(experiment: Experiment) -> None:
    """Samples, judges, scores and reports, unless all is done; prints the table.

    Raises:
      McrError: too many verdicts are missing; the others are scored and reported.
    """
    from mcr_jax.judge import stage as judge
    from mcr_jax.report import stage as report
    from mcr_jax.sample import stage as sample
    from mcr_jax.score import stage as score

    if seal.finished(experiment, "eval"):
        console.say(f"eval: nothing to do, all of it is in {experiment.workdir.path}")
        show(artifacts.results(experiment.workdir))
        return
    sample.ready(experiment)
    judge.ready(experiment)
    sample.run(experiment, before=lambda: judge.ask_services(experiment))
    judged = judge.run(experiment)
    results = score.run(experiment)
    report.run(experiment)
    if judged.whole:
        seal.finish(experiment, "eval")
    show(results)
    if judged.problem:
        raise McrError(judged.problem)
