"""Forms of the JSON files of a workdir, checked by every stage that reads another's file.

People edit these files and disks damage them. The error is one line that names file and field.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mcr_jax.errors import McrError
from mcr_jax.metrics import HEADLINE, METRICS, nested
from mcr_jax.workdir import Workdir, read_json

_MAX_NAME_CHARS = 120  # of a field's name in an error


class Number(NamedTuple):
    """A finite number from `low` to `high`."""

    low: float
    high: float


class Null(NamedTuple):
    """Null, or a value of a form."""

    form: Any


class Each(NamedTuple):
    """An object with any names; each value has the form."""

    form: Any


# A form is one of: str, bool or dict; a class above; a list of the form of its items; a dict from
# names to forms, for an object that may have further names ("NAME?" is optional); a function from
# the value to its form.
Form = type | Number | Null | Each | list | dict | Callable[[Any], Any]

_SHARE, _POINTS, _COUNT = Number(0, 1), Number(-1, 1), Number(0, 1e15)
_ANY = Number(-1e30, 1e30)
_BOUNDS = {"resolved": _COUNT, "total": _COUNT, "worst": _SHARE, "best": _SHARE}
_VALUES = dict.fromkeys(("value", "low", "high"), _SHARE)
_PAIR = {"a": str, "b": str, "metric": str, "test": str}
_DIFFERENCE = dict.fromkeys(("difference", "low", "high"), _POINTS)
_DIFFERENCE |= {"p_value": _SHARE, "cases": _COUNT, "equal?": _COUNT}


def _metric(value: Any) -> Form:
    resolved = isinstance(value, dict) and value.get("value") is not None
    return {**_VALUES, **_BOUNDS} if resolved else {"value": Null(str), **_BOUNDS}


def _figure(value: Any) -> Form:
    if not isinstance(value, dict) or value.get("value") is None:
        return {"value": Null(str)}
    return {"value": _ANY, **dict.fromkeys(("low", "high") if "low" in value else (), _ANY)}


def _agreement(value: Any) -> Form:
    if not isinstance(value, dict) or value.get("value") is None:
        return {"value": Null(str)}
    return {"value": _POINTS, "low": Null(_ANY), "high": Null(_ANY)}


def _comparison(value: Any) -> Form:
    compared = isinstance(value, dict) and value.get("difference") is not None
    return {**_PAIR, **_DIFFERENCE} if compared else {"difference": Null(str), **_PAIR}


_USD = Number(0, 1e6)
PRICE = {  # a row of mcr_jax/prices.toml
    **dict.fromkeys(("service", "model", "tier?", "source", "valid_from", "valid_to?"), str),
    **dict.fromkeys(("input", "output", "cached?"), _USD),
    "batch?": _SHARE,
    "own?": bool,
}
_USAGE = dict.fromkeys(("requests", "prompt_tokens", "output_tokens", "cached_tokens"), _COUNT)
_USAGE["dollars"] = Null(_ANY)
_AGREEMENT = {"n": _COUNT, **dict.fromkeys(("raw", "kappa", "ac1"), _agreement)}
_METRIC_FIELDS = [m.name if m.name == HEADLINE else f"{m.name}?" for m in METRICS]
RESULTS = {
    "notice": str,
    "config": {
        "name": str,
        "seed": _COUNT,
        "confidence": _SHARE,
        "resamples": _COUNT,
        "answer?": str,
        "models?": [str],
    },
    "data": dict,
    "judge": {
        "name": str,
        "identity?": str,
        "note?": str,
        "verdicts": Each({"wanted": _COUNT, "settled": _COUNT}),
        "versions?": Each(Each(_COUNT)),
        "usage?": _USAGE,
        "status?": Each(str),
        "repeat?": _COUNT,
        "repeatability?": Each(_figure),
    },
    "judges?": Each(
        {
            "identity?": str,
            "note?": str,
            "status?": Each(str),
            "versions": Each(Each(_COUNT)),
            "verdicts": Each({"wanted": _COUNT, "settled": _COUNT}),
            "agreement": {"diagnosis": _AGREEMENT, "reasons": _AGREEMENT},
            "repeatability?": Each(_figure),
            "usage?": _USAGE,
            "models": Each(nested(dict.fromkeys(_METRIC_FIELDS, _metric))),
        }
    ),
    "models": Each(
        {
            **nested(dict.fromkeys(_METRIC_FIELDS, _metric)),
            "outcomes": Each(_COUNT),
            "answers?": Each(_COUNT),
            "usage?": _USAGE,
        }
    ),
    "comparisons": [_comparison],
    "prices?": [PRICE],
}
SCORES = {
    "models": Each(
        Each(
            {
                "kinds": [str],
                "right": [Null(bool)],
                "rules?": [Null(str)],
                "recall?": [Null(_SHARE)],
                "recall_verified?": [Null(_SHARE)],
                "metrics": dict.fromkeys(_METRIC_FIELDS, Null(_SHARE)),
            }
        )
    )
}
METRICS_ROW = {"step?": _COUNT, "loss?": Null(_ANY), "val_loss?": Null(_ANY)}
_FIGURES = {f"{name}?": _figure for name in ("coverage", "faultless", "with_additions", "early")}
_FIGURES["length_ratio?"] = _figure
_JUDGED = {f"with_{name}?": _figure for name in ("turned", "missing", "added")}
STITCHING = {
    "model": str,
    "confidence": _SHARE,
    "cases": Each(_COUNT),
    "first": _FIGURES,
    "kept": _FIGURES,
    "joined": {"share": _figure, "reasons": Each(_COUNT)},
    "distortion?": Null({"judge": str, "first": _JUDGED, "kept": _JUDGED}),
}


def results(workdir: Workdir) -> dict[str, Any]:
    """Reads results.json. Raises McrError if it is missing, broken or of another form."""
    found = check(workdir.results, read_json(workdir.results), RESULTS)
    if not found["models"]:
        raise McrError(f"{workdir.results}: field models is empty; run `mcr score` again")
    order = [*found["config"].get("models", ()), *found["models"]]  # JSON sorts them by name
    models = {name: found["models"][name] for name in order if name in found["models"]}
    return {**found, "models": models}


def judges(workdir: Workdir) -> list[str]:
    """Returns the names of the judges that results.json is of: the headline, the others sorted.

    Raises McrError as `results`.
    """
    found = results(workdir)
    return [found["judge"]["name"], *sorted(found.get("judges", {}))]


def scores(workdir: Workdir, models: list[str]) -> dict[str, Any]:
    """Reads scores.json, which must have these models; returns those, in the order given.

    Raises:
      McrError: it is missing, broken, of another form or of other models.
    """
    found = check(workdir.scores, read_json(workdir.scores), SCORES)
    if missing := [model for model in models if model not in found["models"]]:
        raise McrError(
            f"{workdir.scores}: field models lacks {missing[0]!r}, which results.json has; run "
            "`mcr score` again"
        )
    for model, cases in found["models"].items():
        for fingerprint, case in cases.items():
            if len(case["kinds"]) != len(case["right"]):
                raise McrError(
                    f"{workdir.scores}: field models.{model}.{fingerprint} has "
                    f"{len(case['kinds'])} kinds and {len(case['right'])} right; run `mcr score` "
                    "again"
                )
    return {**found, "models": {model: found["models"][model] for model in models}}


def metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """Reads the rows of metrics.jsonl that have a step; [] without the file.

    Skips a last line that a kill cut short. NaN and Infinity of a diverged run become None.

    Raises:
      McrError: a row is broken or of another form; rows count from 1.
    """
    path = workdir.metrics
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise McrError(f"{path}: unreadable: {error}") from error
    rows = []
    for number, line in enumerate(whole, start=1):
        at = Path(f"{path}, row {number}")
        try:
            row = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError) as error:
            raise McrError(f"{at}: not JSON: {error}") from error
        rows.append(check(at, row, METRICS_ROW))
    return [row for row in rows if "step" in row]


def stitching(workdir: Workdir) -> dict[str, Any]:
    """Reads stitch.json. Raises McrError if it is missing, broken or of another form."""
    return check(workdir.stitching, read_json(workdir.stitching), STITCHING)


def section(workdir: Workdir, name: str, form: Form = dict) -> dict[str, Any]:
    """Reads a section of manifest.json; {} if it is absent.

    Raises:
      McrError: the file is broken, or the section does not have the `form`.
    """
    found = check(workdir.manifest, workdir.sections(), {f"{name}?": form})
    return found.get(name, {})


def check(path: Path, value: Any, form: Form, field: str = "") -> Any:
    """Returns `value`, read from `path`. Raises McrError unless it has the form."""
    if line := wrong(value, form, field):
        raise McrError(f"{path}: {line}; was it changed by hand? Run the stage that makes it")
    return value


def wrong(value: Any, form: Form, field: str = "") -> str:
    """Describes the fault of a value in one line; "" if it has the form."""
    line = _wrong(value, form, field)
    return "".join(c if c.isprintable() else "?" for c in line)  # names of fields are data


def _wrong(value: Any, form: Form, field: str) -> str:
    """Describes the fault of a value and names its field; "" if it has the form."""
    name = f"field {field[:_MAX_NAME_CHARS]}" if field else "it"
    match form:
        case Null():
            return "" if value is None else _wrong(value, form.form, field)
        case Number():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and form.low <= value <= form.high:  # not NaN
                return ""
            return f"{name} is not a number from {form.low:g} to {form.high:g}"
        case Each() | dict():
            if not isinstance(value, dict):
                return f"{name} is not an object"
            fields = dict.fromkeys(value, form.form) if isinstance(form, Each) else form
            return _first(_of_field(value, key, of_key, field) for key, of_key in fields.items())
        case list():
            if not isinstance(value, list):
                return f"{name} is not a list"
            (of_item,) = form
            return _first(_wrong(v, of_item, f"{field}[{i}]") for i, v in enumerate(value))
        case type():
            word = {str: "text", bool: "true or false", dict: "an object"}[form]
            return "" if isinstance(value, form) else f"{name} is not {word}"
    return _wrong(value, form(value), field)


def _of_field(value: dict[str, Any], key: str, form: Form, field: str) -> str:
    inside = key.removesuffix("?") if key not in value else key
    at = f"{field}.{inside}" if field else inside
    if inside not in value:
        return "" if key != inside else f"field {at[:_MAX_NAME_CHARS]} is missing"
    return _wrong(value[inside], form, at)


def _first(found: Any) -> str:
    return next(filter(None, found), "")
