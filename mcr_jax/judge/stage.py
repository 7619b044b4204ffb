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
    done = f"{counts['asked']} asked now" if counts["asked"] else "nothing to do"
    left = f", {counts['unresolved']} unresolved" if counts["unresolved"] else ""
    console.say(f"judge: {counts['judge']}: {counts['total']} verdicts, {done}{left}")
    problem = too_few(counts, experiment.config)
    return Judged(whole=not counts["unresolved"], problem=problem)
