"""The scoring stage: computes results.json from the ledger."""

from typing import Any

from mcr_jax import console
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.judges.choose import readings
from mcr_jax.score.results import score


def run(experiment: Experiment) -> dict[str, Any]:
    """Scores; returns the contents of results.json."""
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
