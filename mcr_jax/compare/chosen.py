"""Models to compare, by WORKDIR[:MODEL], and what their workdirs differ in."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcr_jax import artifacts, judge_specs
from mcr_jax.errors import McrError, UsageError, one_line, printable
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir

_MAX_VALUE_CHARS = 100  # of a value in a line about differences
_DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256, of which a line shows the start
JUDGE = "judge"  # fact: its name
_OF_ONE_JUDGE = ("identity", *(f"version ({stage})" for stage in judge_specs.STAGES))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One model of one workdir.

    Attributes:
      label: its name in the comparison, unlike any other.
      folder: the workdir.
      place: the workdir as the command line names it.
      model: name in results.json.
      results: results.json of the workdir.
      cases: of the model in scores.json, by fingerprint.
      facts: what must be equal for numbers to be comparable, by name; "" where not recorded.
      about: further facts, of the model and its workdir.
    """

    label: str
    folder: Path
    place: str
    model: str
    results: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, str]
    about: Mapping[str, str]


def chosen(operands: Sequence[str]) -> list[Chosen]:
    """Reads the models that a command line names; a workdir alone names all of its models.

    Raises:
      UsageError: a folder or model is not there, one is named twice, or there are fewer than two.
      McrError: results.json or scores.json is missing, broken or of another form.
    """
    read: dict[Path, _Read] = {}
    places: list[tuple[Path, str]] = []
    for operand in operands:
        folder, place, model = _split(operand)
        if folder not in read:
            read[folder] = _Read.of(folder, place)
        models = list(read[folder].results["models"])
        if model and model not in models:
            raise UsageError(f"{folder}: there is no model {model!r} but {', '.join(models)}")
        places += [(folder, name) for name in ([model] if model else models)]
    if twice := [place for place, count in collections.Counter(places).items() if count > 1]:
        raise UsageError(f"{twice[0][0]}: model {twice[0][1]!r} is named twice")
    if len(places) < 2:
        raise UsageError("a comparison takes two models: name WORKDIR:MODEL or WORKDIR twice")
    return [
        read[folder].chosen(label, model)
        for label, (folder, model) in zip(_labels(places), places, strict=True)
    ]


class _Read(NamedTuple):
    """Content of a workdir; see `Chosen`."""

    workdir: Workdir
    place: str
    results: dict[str, Any]
    scores: dict[str, Any]
    facts: dict[str, str]

    @classmethod
    def of(cls, folder: Path, place: str) -> "_Read":
        workdir = Workdir(folder, writes=False)
        results = artifacts.results(workdir)
        scores = artifacts.scores(workdir, list(results["models"]))
        return cls(workdir, place, results, scores, _facts(workdir, results))

    def chosen(self, label: str, model: str) -> Chosen:
        return Chosen(
            label=label,
            folder=self.workdir.path,
            place=self.place,
            model=model,
            results=self.results,
            cases=self.scores["models"][model],
            facts=self.facts,
            about=_about(self.workdir, self.results, model),
        )


def _split(operand: str) -> tuple[Path, str, str]:
    """Splits WORKDIR[:MODEL] into path, WORKDIR and MODEL.

    Names of models may hold colons and slashes too.
    """
    folder, model = operand, ""
    while folder:
        if local_folder(folder).is_dir():
            return local_folder(folder).resolve(), folder, model
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
    """Returns the facts in which models differ: one value per model, "" where not recorded.

    Judges of different names also differ in identity and versions: these are left out.
    """
    found = {}
    for name in models[0].facts:
        values = [model.facts[name] for model in models]
        if len({value for value in values if value}) > 1:
            found[name] = values
    if JUDGE in found:
        return {name: found[name] for name in found if name not in map(_of_judge, _OF_ONE_JUDGE)}
    return found


def by_value(values: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Groups names by their value, each once; the value is "not recorded" where it is ""."""
    found = collections.defaultdict(dict)
    for value, name in zip(values, names, strict=True):
        found[value or "not recorded"][name] = None
    return {value: list(of_value) for value, of_value in found.items()}


def described(name: str, values: Sequence[str], models: Sequence[Chosen]) -> str:
    """Describes one of `differences` in one line, such as "split: test (a) and val (b)"."""
    grouped = by_value(values, [model.place for model in models])
    parts = (
        f"{one_line(value, _MAX_VALUE_CHARS)} ({', '.join(places)})"
        for value, places in grouped.items()
    )
    return printable(f"{name}: {' and '.join(parts)}")


def _facts(workdir: Workdir, results: Mapping[str, Any]) -> dict[str, str]:
    judge, config, data = results["judge"], results["config"], results["data"]
    sample = artifacts.section(workdir, "sample")
    identity, *versions = map(_of_judge, _OF_ONE_JUDGE)
    return {
        JUDGE: judge["name"],
        identity: judge.get("identity", ""),
        **{
            name: _version(judge, stage)
            for name, stage in zip(versions, judge_specs.STAGES, strict=True)
        },
        "judge.repeat": str(judge.get("repeat", 1)),  # results.json has it where it is above 1
        "judge.max_tokens": _text(judge.get("max_tokens", "")),
        "judge's prompts": _text(judge.get("prompts", "")),
        "readings of verdicts": _text(judge.get("readings", "")),
        "reading of answers": config.get("answer", ""),
        "prompt": _text(sample.get("prompt", "")),
        "split": _text(data.get("split", "")),
    }


def _about(workdir: Workdir, results: Mapping[str, Any], model: str) -> dict[str, str]:
    noted = artifacts.section(workdir, f"sample.{model}", {"identity?": str})
    data = {
        key: value
        for key, value in results["data"].items()
        if key != "split" and isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    return {
        "samples per case": _text(results["config"].get("samples", "")),
        "data": _text(data),
        "model": noted.get("identity", ""),
    }


def _of_judge(fact: str) -> str:
    return f"judge's {fact}"


def _version(judge: Mapping[str, Any], stage: str) -> str:
    """Returns the model versions whose verdicts count in a stage; a pair names both as A+B."""
    named, reported = _text(judge.get("version", "")), judge.get("versions", {}).get(stage, {})
    counted = [v for v in sorted(reported) if not named or v in (named, *named.split("+"))]
    return ", ".join(counted) or named


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(value[key])}" for key in sorted(value))
    return value[:12] if isinstance(value, str) and _DIGEST.fullmatch(value) else str(value)
