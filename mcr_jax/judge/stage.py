"""The judging stage: rates the diagnosis and the clinician's reasons in every completion."""

from typing import NamedTuple

from mcr_jax import console
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.judge.ask import check, judge, too_few
from mcr_jax.sigterm import stoppable


class Judged(NamedTuple):
    """Outcome of judging.

    Attributes:
      whole: whether every verdict is there.
      problem: a line if more are missing than config.judge.unresolved_limit allows, else "".
    """

    whole: bool
    problem: str


def ready(experiment: Experiment) -> None:
    """Raises UsageError if the judge cannot be called; to be called before hours of sampling."""
    check(experiment.workdir, experiment.config)


def run(experiment: Experiment) -> Judged:
    """Judges every completion that has no verdict yet.

    Raises:
      Stopped: SIGTERM came; every verdict that came is in the ledger.
    """
    with stoppable("stopped by SIGTERM; every verdict that came is kept, call again to go on"):
        counts = judge(experiment.workdir, experiment.config, experiment.eval_cases())
    whole, problems = True, []
    for of_judge in (counts, *counts["further"]):
        done = f"{of_judge['asked']} asked now" if of_judge["asked"] else "nothing to do"
        left = f", {of_judge['unresolved']} unresolved" if of_judge["unresolved"] else ""
        console.say(f"judge: {of_judge['judge']}: {of_judge['total']} verdicts, {done}{left}")
        whole = whole and not of_judge["unresolved"]
        if problem := too_few(of_judge, experiment.config):
            problems.append(f"{of_judge['judge']}: {problem}" if counts["further"] else problem)
    return Judged(whole=whole, problem="; ".join(problems))
