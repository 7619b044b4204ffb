"""Selects the parameters of a test that `make test` runs; `make test-all` runs all."""

from collections.abc import Iterable

import pytest


def quick(count: int, values: Iterable[object]) -> list[object]:
    """The parameters in order, all but the first `count` of them marked slow.

    A tuple is one set of arguments: a test of one argument that is a tuple takes a tuple of it.
    """
    packed = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*value, marks=pytest.mark.slow if position >= count else ())
        for position, value in enumerate(packed)
    ]
