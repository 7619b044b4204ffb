"""Parses the JSON of a judge's reply strictly.

Also accepted: JSON in a code fence or after a byte order mark, a value wrapped in a list of one or
an object of one field, and integers written as "1" or 1.0. Anything else is a ValueError.
"""

import json
import re
from typing import Any, NoReturn

_FENCE = re.compile(r"```[a-zA-Z]*+(.*)```", re.DOTALL)
_WHOLE = re.compile(r"[0-9]{1,9}")


def read(text: str) -> Any:
    """Parses one JSON value.

    Raises:
      ValueError: the text is not one JSON value, repeats a field of an object, holds NaN or
        Infinity, or is nested too deeply.
    """
    text = _bare(text)
    if fenced := _FENCE.fullmatch(text):
        text = _bare(fenced[1])
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise ValueError("not readable JSON: nested too deeply") from None


def unwrap(value: Any, wanted: type) -> Any:
    """Returns the `wanted` list or object that is the only entry of `value`, else `value`."""
    inner: Any = None
    if isinstance(value, dict) and len(value) == 1:
        (inner,) = value.values()
    elif isinstance(value, list) and len(value) == 1:
        (inner,) = value
    return inner if isinstance(inner, wanted) else value


def whole(value: Any) -> Any:
    """Converts "1" and 1.0 to int; returns anything else unchanged."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fields(value: Any, **types: type) -> tuple[Any, ...]:
    """Returns the values of an object with exactly the fields `types`, in their order.

    Raises:
      ValueError: `value` is not an object, or a field is missing, extra or of another type.
    """
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError(f"expected an object with exactly {', '.join(types)}")
    for name, expected in types.items():
        if type(value[name]) is not expected:  # a bool is an int to isinstance
            raise ValueError(f"{name} is {type(value[name]).__name__}, not {expected.__name__}")
    return tuple(value[name] for name in types)


def by_number(entries: list[Any], total: int, **types: type) -> list[tuple[Any, ...]]:
    """Returns the fields `types` of each entry, sorted by its `number`, 1 to `total`.

    Raises:
      ValueError: an entry has another form, or a number is missing, repeated or out of range.
    """
    found: dict[int, tuple[Any, ...]] = {}
    for entry in entries:
        if isinstance(entry, dict) and "number" in entry:
            entry = entry | {"number": whole(entry["number"])}
        number, *values = fields(entry, number=int, **types)
        if not 1 <= number <= total:
            raise ValueError(f"statement {number} of {total} does not exist")
        if number in found:
            raise ValueError(f"statement {number} is answered twice")
        found[number] = tuple(values)
    if missing := sorted(set(range(1, total + 1)) - found.keys()):
        raise ValueError(f"statement {missing[0]} is not answered")
    return [found[number] for number in range(1, total + 1)]


def _bare(text: str) -> str:
    return text.strip().removeprefix("\ufeff").strip()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("an object repeats a field")
    return parsed


def _constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is not a number")
