"""Judges by name: the entries of config.judge.models.

An entry is SPEC or NAME=SPEC. A SPEC is one model (offline, gemini:MODEL, openai:MODEL, or
ENDPOINT:MODEL of config.endpoints), a pair diagnosis:MODEL+reasons:MODEL of these, with a model for
each stage of judging, or a name of PRESETS. Without entries, config.judge.name and
config.judge.model name the one judge.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax import model_specs
from mcr_jax.errors import UsageError
from mcr_jax.model_specs import GEMINI, OFFLINE, OPENAI, ModelSpec

STAGES = ("diagnosis", "reasons")  # of judging, in the ledger
_BETWEEN = re.compile(rf"\+(?=(?:{'|'.join(STAGES)}):)")  # the models of a pair
PRESETS = {
    # The judges of the MedCaseReasoning paper.
    "paper": "paper=diagnosis:openai:gpt-4o-mini+reasons:openai:o4-mini",
    "gemini": "gemini:gemini-3.5-flash-lite",
}


class Judge(NamedTuple):
    """A judge.

    Attributes:
      name: in the ledger and in results.json.
      models: model of each stage; the same for both unless the judge is a pair.
      versions: the only model_version that counts, by stage; "" for any.
    """

    name: str
    models: Mapping[str, ModelSpec]
    versions: Mapping[str, str]

    @property
    def is_pair(self) -> bool:
        """True if the stages have different models."""
        first, second = self.models.values()
        return first != second

    @property
    def parts(self) -> list[tuple[str, ...]]:
        """Stages by model: both together unless the judge is a pair."""
        return [(stage,) for stage in STAGES] if self.is_pair else [STAGES]


def judges(config: ConfigDict) -> list[Judge]:
    """Reads config.judge; the first judge is the headline.

    config.judge.version is of the headline; for a pair it is DIAGNOSIS+REASONS.

    Raises:
      UsageError: an entry is wrong, or two judges have one name or the same models.
    """
    section, named = config.judge, model_specs.endpoints(config)
    if section.models:
        model_specs.refuse_empty("config.judge.models", section.models)
        found = [_parse(text, named) for text in section.models]
    else:
        name = plain_name(section.name, section.model)
        value = "" if section.name == OFFLINE else section.model
        found = [(name, dict.fromkeys(STAGES, ModelSpec(name, section.name, value)))]
    for at, (name, models) in enumerate(found):
        for other, of_other in found[:at]:
            if name == other:
                raise UsageError(f"config.judge.models names {name!r} twice")
            if models == of_other:
                raise UsageError(
                    f"config.judge.models: {other} and {name} are the same model, which agrees "
                    "with itself; config.judge.repeat repeats its verdicts"
                )
    return [
        Judge(name, models, _versions(models, "" if at else section.version))
        for at, (name, models) in enumerate(found)
    ]


def headline(config: ConfigDict) -> Judge:
    """Returns the judge whose verdicts make results.json. Raises UsageError as `judges`."""
    return judges(config)[0]


def plain_name(kind: str, model: str) -> str:
    """Returns the name of a judge of one model, as without config.judge.models."""
    return kind if kind == OFFLINE else f"{kind}:{model}"


def _parse(text: str, named: Collection[str]) -> tuple[str, dict[str, ModelSpec]]:
    """Returns name and models of an entry; `named` are endpoints. Raises UsageError if wrong."""
    text = PRESETS.get(text.strip(), text.strip())
    name, sign, spec = text.partition("=")
    if not sign:
        name, spec = text, text
    spec = PRESETS.get(spec.strip(), spec.strip()).rpartition("=")[2]
    parts = [part.partition(":") for part in _BETWEEN.split(spec)]
    texts = dict.fromkeys(STAGES, spec)
    if any(stage in STAGES for stage, *_ in parts):
        if sorted(stage for stage, *_ in parts) != sorted(STAGES):
            raise UsageError(
                f"config.judge.models: {text!r} is no pair: write "
                "NAME=diagnosis:MODEL+reasons:MODEL"
            )
        texts = {stage: model for stage, _, model in parts}
    models = {stage: _model(texts[stage], named) for stage in STAGES}
    return model_specs.checked_name(name.strip(), text), models


def _model(text: str, named: Collection[str]) -> ModelSpec:
    if text.strip() == OFFLINE:
        return ModelSpec(OFFLINE, OFFLINE, "")
    services = (GEMINI, OPENAI, *named)
    try:
        spec = model_specs.parse(text, named)
    except UsageError:
        spec = None
    if spec is None or "=" in text:
        raise UsageError(
            f"there is no judge {text!r}: name offline, "
            f"{', '.join(f'{kind}:MODEL' for kind in services)}, {', '.join(PRESETS)}, or NAME= "
            "one of these; config.endpoints names other servers"
        )
    if spec.kind not in services:
        raise UsageError(
            f"{text!r} in config.judge.models cannot judge: a model of this machine has to be "
            "served, such as by vLLM or `transformers serve`, and named ENDPOINT:MODEL with "
            "config.endpoints, or openai:MODEL with OPENAI_BASE_URL"
        )
    return spec


def _versions(models: Mapping[str, ModelSpec], version: str) -> dict[str, str]:
    first, second = models.values()
    if not version or first == second:
        return dict.fromkeys(models, version)
    named = version.split("+")
    if len(named) != len(models):
        raise UsageError(
            f"config.judge.version={version!r}: the headline judge is a pair, so name both "
            "versions: DIAGNOSIS+REASONS"
        )
    return dict(zip(models, named, strict=True))
