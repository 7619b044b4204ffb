"""Reads a judge's JSON strictly: what is not exactly of the asked form is a ValueError."""

import json
from typing import Any


def read(text: str) -> Any:
    """Parses one JSON value.

    Raises:
      ValueError: the text is not JSON, repeats a field of an object, or nests beyond reading.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object repeats a field")
    return made
