"""The scoring stage: computes results.json from the ledger."""

from collections.abc import Mapping
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
    _say_of(judge, "")
    for name, other in results.get("judges", {}).items():
        _say_of(other, f" of {name}")
    return results


def _say_of(judge: Mapping[str, Any], whose: str) -> None:
    """Prints that verdicts do not count, or how many are missing."""
    if "note" in judge:
        console.say(f"score:{f' verdicts{whose}:' if whose else ''} {judge['note']}")
        return
    for stage, count in judge["verdicts"].items():
        if left := count["wanted"] - count["settled"]:
            console.say(
                f"score: {left} of {count['wanted']} {stage} verdicts{whose} are missing and count "
                "as unresolved; run `mcr judge` again"
            )
