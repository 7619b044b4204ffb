"""Judges the completions: is the diagnosis right, and which of the clinician's reasons are found.

--config.judge.name=gemini asks Gemini (set GEMINI_API_KEY); offline decides by fixed rules.
"""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, run_stage


def main(argv: Sequence[str]) -> None:
    """`mcr judge --config=FILE.py --workdir=DIR`."""
    run_stage("judge", __doc__, argv, run)


def ready(experiment: Experiment) -> None:
    """Raises UsageError if the judge cannot be called: better before hours of work than after."""
    from mcr_jax.judge.run import make_judge

    make_judge(experiment.config)


def run(experiment: Experiment) -> bool:
    """Judges what has no verdict yet; returns whether asking again would be in vain."""
    from mcr_jax.judge.run import judge

    counts = judge(experiment.workdir, experiment.config, experiment.eval_cases())
    done = f"{counts['asked']} asked now" if counts["asked"] else "nothing to do"
    left = f", {counts['unresolved']} unresolved" if counts["unresolved"] else ""
    console.say(f"judge: {counts['judge']}: {counts['total']} verdicts, {done}{left}")
    return counts["asked"] == counts["settled"]
