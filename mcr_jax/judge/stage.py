"""The judging stage: rates the diagnosis and the clinician's reasons in every completion."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mcr_jax import artifacts, console
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate import free_question, spending
from mcr_jax.judge.ask import check, judge, too_few
from mcr_jax.judge_specs import headline
from mcr_jax.judges.choose import make_judges
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


def ask_services(experiment: Experiment) -> None:
    """Asks the judges' services, at no cost, whether they take the keys and have the models.

    To be called before the first completion is paid. Raises McrError if one refuses.
    """
    made = make_judges(experiment.config).values()
    for line in free_question.ask(model for of_judge in made for model in of_judge.values()):
        console.say(f"judge: {line}")


def run(experiment: Experiment) -> Judged:
    """Judges every completion that has no verdict yet.

    Raises:
      Stopped: SIGTERM came; every verdict that came is in the ledger.
    """
    with stoppable("stopped by SIGTERM; every verdict that came is kept, call again to go on"):
        counts = judge(experiment.workdir, experiment.config, experiment.eval_cases())
    whole, problems = True, []
    for of_judge in (counts, *counts["further"]):
        console.say(f"judge: {of_judge['judge']}: {_words(of_judge)}")
        whole = whole and not of_judge["unresolved"]
        if problem := too_few(of_judge, experiment.config):
            problems.append(f"{of_judge['judge']}: {problem}" if counts["further"] else problem)
    _say_of_results(experiment)
    return Judged(whole=whole, problem="; ".join(problems))


def _words(counts: Mapping[str, Any]) -> str:
    """Returns the counts of one judge for people."""
    line = f"{counts['total']} verdicts"
    if calls := counts.get("calls"):
        line += f" from {spending.counted(calls, 'call')}"
        if counts["equal"]:
            line += f" ({counts['equal']} equal to others)"
        if 0 < counts["calls_now"] < calls:
            line += f", {counts['calls_now']} of these calls now"
    if not counts["asked"]:
        line += ", nothing to do"
    return line + (f", {counts['unresolved']} unresolved" if counts["unresolved"] else "")


def _say_of_results(experiment: Experiment) -> None:
    """Prints that results.json is of another headline judge, if it is."""
    path = experiment.workdir.results
    if not path.exists():
        return
    then, now = artifacts.judges(experiment.workdir)[0], headline(experiment.config).name
    if then != now:
        console.say(
            f"judge: the headline judge is now {now}; {path} and the report are of {then} until "
            "`mcr eval` makes them anew"
        )
