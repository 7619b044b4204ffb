"""Facts of judges in the manifest: identities, prompts, readings and retirement notices."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, judge_specs, prompts
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.ledger import Attempt
from mcr_jax.judge_specs import Judge
from mcr_jax.judges.choose import readings
from mcr_jax.workdir import Workdir


def facts(
    judge: Judge,
    generators: Mapping[str, Generator | Remote],
    texts: Mapping[str, prompts.Prompt],
    config: ConfigDict,
) -> dict[str, Any]:
    """Returns a judge's facts for the manifest."""
    identities = {stage: generator.identity for stage, generator in generators.items()}
    identity = "; ".join(f"{stage}: {identity}" for stage, identity in identities.items())
    if len(set(identities.values())) == 1:
        identity = identities["diagnosis"]
    return {
        "name": judge.name,
        "identity": identity,
        "max_tokens": config.judge.max_tokens,
        "prompts": {prompt.name: prompt.digest for prompt in texts.values()},
        "readings": readings(config),
    }


def note(workdir: Workdir, judge: Judge, facts: Mapping[str, Any], config: ConfigDict) -> None:
    """Records the facts of a judge: the first in "judge", others by name in "judges"."""
    first, *others = (each.name for each in judge_specs.judges(config))
    if judge.name == first:
        workdir.note("judge", facts)
        return
    noted = artifacts.section(workdir, "judges")
    kept = {name: of_judge for name, of_judge in noted.items() if name in others}
    workdir.note("judges", {**kept, judge.name: dict(facts)})


def noted_status(workdir: Workdir, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"status": ...} as it stands in the manifest for the same models, else {}."""
    noted = artifacts.section(workdir, "judges").get(facts["name"])
    for found in (artifacts.section(workdir, "judge"), noted):
        found = found if isinstance(found, dict) else {}
        same = all(found.get(key) == facts[key] for key in ("name", "identity"))
        if same and "status" in found:
            return {"status": found["status"]}
    return {}


def status(judge: Judge, answers: Iterable[Attempt]) -> dict[str, Any]:
    """Returns {"status": the newest retirement notice of each model}, {} without any."""
    found = {}
    for attempt in sorted(answers, key=lambda attempt: attempt.id):
        if attempt.model_status:
            found[judge.models[attempt.row.stage].name] = attempt.model_status
    return {"status": found} if found else {}
