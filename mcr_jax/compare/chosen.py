"""Models to compare, by WORKDIR[:MODEL], and what their workdirs differ in."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax import artifacts, judge_specs
from mcr_jax.errors import McrError, UsageError, one_line, printable
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir

_MAX_VALUE_CHARS = 100  # of a value in a line about differences
_DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256, of which a line shows the start


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One model of one workdir.

    Attributes:
      label: its name in the comparison, unlike any other.
      folder: the workdir.
      model: name in results.json.
      results: results.json of the workdir.
      cases: of the model in scores.json, by fingerprint.
      facts: what must be equal for numbers to be comparable, by name; "" where not recorded.
    """

    label: str
    folder: Path
    model: str
    results: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, str]


def chosen(operands: Sequence[str]) -> list[Chosen]:
    """Reads the models that a command line names; a workdir alone names all of its models.

    Raises:
      UsageError: a folder or model is not there, one is named twice, or there are fewer than two.
      McrError: results.json or scores.json is missing, broken or of another form.
    """
    read: dict[Path, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {}
    places: list[tuple[Path, str]] = []
    for operand in operands:
        folder, model = _split(operand)
        if folder not in read:
            workdir = Workdir(folder, writes=False)
            results = artifacts.results(workdir)
            scores = artifacts.scores(workdir, list(results["models"]))
            read[folder] = results, scores, _facts(workdir, results)
        models = list(read[folder][0]["models"])
        if model and model not in models:
            raise UsageError(f"{folder}: there is no model {model!r} but {', '.join(models)}")
        places += [(folder, name) for name in ([model] if model else models)]
    if twice := [place for place, count in collections.Counter(places).items() if count > 1]:
        raise UsageError(f"{twice[0][0]}: model {twice[0][1]!r} is named twice")
    if len(places) < 2:
        raise UsageError("a comparison takes two models: name WORKDIR:MODEL or WORKDIR twice")
    return [
        Chosen(
            label, folder, model, read[folder][0], read[folder][1]["models"][model], read[folder][2]
        )
        for label, (folder, model) in zip(_labels(places), places, strict=True)
    ]


def _split(operand: str) -> tuple[Path, str]:
    """Splits WORKDIR[:MODEL]; names of models may hold colons and slashes too."""
    folder, model = operand, ""
    while folder:
        if local_folder(folder).is_dir():
            return local_folder(folder).resolve(), model
        folder, colon, last = folder.rpartition(":")
        model = f"{last}:{model}" if model else last
        if not colon:
            break
    raise UsageError(f"{operand}: there is no such folder; name WORKDIR or WORKDIR:MODEL")


def _labels(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Names models alone, with their folder's name or with its path: the first without doubles."""
    forms = [
        [model for _, model in places],
        [f"{folder.name}:{model}" for folder, model in places],
        [f"{folder}:{model}" for folder, model in places],
    ]
    return next(labels for labels in forms if len(set(labels)) == len(labels))


def common(models: Sequence[Chosen]) -> list[str]:
    """Returns the fingerprints of the cases of all models, sorted. Raises McrError without any."""
    cases = sorted(set.intersection(*(set(model.cases) for model in models)))
    if not cases:
        counts = ", ".join(f"{model.label} has {len(model.cases)}" for model in models)
        raise McrError(f"no case is common to all models ({counts}): nothing can be compared")
    return cases


def differences(models: Sequence[Chosen]) -> dict[str, list[str]]:
    """Returns the facts in which models differ: one value per model, "" where not recorded."""
    found = {}
    for name in models[0].facts:
        values = [model.facts[name] for model in models]
        if len({value for value in values if value}) > 1:
            found[name] = values
    return found


def described(name: str, values: Sequence[str], models: Sequence[Chosen]) -> str:
    """Describes one of `differences` in one line."""
    by_value = collections.defaultdict(list)
    for value, model in zip(values, models, strict=True):
        by_value[value or "not recorded"].append(model.label)
    parts = (
        f"{one_line(value, _MAX_VALUE_CHARS)} ({', '.join(labels)})"
        for value, labels in by_value.items()
    )
    return printable(f"{name}: {'; '.join(parts)}")


def _facts(workdir: Workdir, results: Mapping[str, Any]) -> dict[str, str]:
    judge, config, data = results["judge"], results["config"], results["data"]
    sample = artifacts.section(workdir, "sample")
    return {
        "judge": judge["name"],
        "judge's identity": judge.get("identity", ""),
        **{f"judge's version ({stage})": _version(judge, stage) for stage in judge_specs.STAGES},
        "judge.repeat": str(judge.get("repeat", 1)),  # results.json has it where it is above 1
        "judge.max_tokens": _text(judge.get("max_tokens", "")),
        "judge's prompts": _text(judge.get("prompts", "")),
        "readings of verdicts": _text(judge.get("readings", "")),
        "reading of answers": config.get("answer", ""),
        "prompt": _text(sample.get("prompt", "")),
        "split": _text(data.get("split", "")),
    }


def _version(judge: Mapping[str, Any], stage: str) -> str:
    """Returns the model versions whose verdicts count in a stage; a pair names both as A+B."""
    named, reported = _text(judge.get("version", "")), judge.get("versions", {}).get(stage, {})
    counted = [v for v in sorted(reported) if not named or v in (named, *named.split("+"))]
    return ", ".join(counted) or named


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(value[key])}" for key in sorted(value))
    return value[:12] if isinstance(value, str) and _DIGEST.fullmatch(value) else str(value)
