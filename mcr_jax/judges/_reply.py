"""Reads a judge's JSON: what is certain to be of the asked form, and nothing else.

Certain are JSON in a code fence or behind a byte order mark, a value in a list of one or in an
object of one field, and whole numbers written as "1" or 1.0. All else is a ValueError.
"""

import json
import re
from typing import Any, NoReturn

_FENCE = re.compile(r"```[a-zA-Z]*+(.*)```", re.DOTALL)
_WHOLE = re.compile(r"[0-9]{1,9}")


def read(text: str) -> Any:
    """Parses one JSON value.

    Raises:
      ValueError: the text is not one JSON value, repeats a field of an object, holds a number that
        JSON does not know, or nests beyond reading.
    """
    text = _bare(text)
    if fenced := _FENCE.fullmatch(text):
        text = _bare(fenced[1])
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None


def unwrap(value: Any, wanted: type) -> Any:
    """`value`, or the `wanted` list or object that is alone in it.

    An object that is alone in a list, a list or an object that is alone in an object of one field.
    """
    inner: Any = None
    if isinstance(value, dict) and len(value) == 1:
        (inner,) = value.values()
    elif isinstance(value, list) and len(value) == 1:
        (inner,) = value
    return inner if isinstance(inner, wanted) else value


def whole(value: Any) -> Any:
    """An int for "1" and 1.0; anything else as it is."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fields(value: Any, **types: type) -> tuple[Any, ...]:
    """The fields of an object that has exactly these, each of exactly this type, in this order.

    Raises:
      ValueError: it is no such object.
    """
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError(f"expected an object with exactly {', '.join(types)}")
    for name, expected in types.items():
        if type(value[name]) is not expected:  # a bool is an int to isinstance
            raise ValueError(f"{name} is {type(value[name]).__name__}, not {expected.__name__}")
    return tuple(value[name] for name in types)


def by_number(entries: list[Any], total: int, **types: type) -> list[tuple[Any, ...]]:
    """The fields of entries that have a `number` from 1 to `total` beside them, in this order.

    Raises:
      ValueError: an entry has another form, or a number is missing, repeated or out of range.
    """
    given: dict[int, tuple[Any, ...]] = {}
    for entry in entries:
        if isinstance(entry, dict) and "number" in entry:
            entry = entry | {"number": whole(entry["number"])}
        number, *values = fields(entry, number=int, **types)
        if not 1 <= number <= total:
            raise ValueError(f"statement {number} of {total} does not exist")
        if number in given:
            raise ValueError(f"statement {number} is answered twice")
        given[number] = tuple(values)
    if missing := sorted(set(range(1, total + 1)) - given.keys()):
        raise ValueError(f"statement {missing[0]} is not answered")
    return [given[number] for number in range(1, total + 1)]


def _bare(text: str) -> str:
    return text.strip().removeprefix("\ufeff").strip()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object repeats a field")
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number")
