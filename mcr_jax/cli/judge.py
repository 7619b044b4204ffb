"""Judges the completions: is the diagnosis right, and which of the clinician's reasons are found.

--config.judge.name=gemini asks Gemini (set GEMINI_API_KEY); offline decides by fixed rules. Every
call asks again for the verdicts that are missing; the exit status is 1 while more of them are than
config.judge.unresolved_limit allows.
"""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.stage_main import stage_main
from mcr_jax.errors import McrError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.sigterm import stoppable


def main(argv: Sequence[str]) -> None:
    """`mcr judge --config=FILE.py --workdir=DIR`."""
    stage_main("judge", __doc__, argv, run_alone)


def ready(experiment: Experiment) -> None:
    """Raises UsageError if the judge cannot be called: better before hours of work than after."""
    from mcr_jax.judge.ask import check

    check(experiment.workdir, experiment.config)


def run_alone(experiment: Experiment) -> None:
    """Judges; raises McrError if too many verdicts are missing."""
    _, problem = run(experiment)
    if problem:
        raise McrError(problem)


def run(experiment: Experiment) -> tuple[bool, str]:
    """Judges what has no verdict yet.

    Returns:
      Whether every verdict is there, and one line if too many are missing.

    Raises:
      Stopped: SIGTERM came; every verdict that came is in the ledger.
    """
    from mcr_jax.judge.ask import judge, too_few

    with stoppable("stopped by SIGTERM; every verdict that came is kept, call again to go on"):
        counts = judge(experiment.workdir, experiment.config, experiment.eval_cases())
    done = f"{counts['asked']} asked now" if counts["asked"] else "nothing to do"
    left = f", {counts['unresolved']} unresolved" if counts["unresolved"] else ""
    console.say(f"judge: {counts['judge']}: {counts['total']} verdicts, {done}{left}")
    return not counts["unresolved"], too_few(counts, experiment.config)
