"""Which of a test's parameters `make test` takes; `make test-all` takes all of them."""

from collections.abc import Iterable

import pytest


def quick(count: int, values: Iterable[object]) -> list[object]:
    """The parameters in order, all but the first `count` of them marked slow."""
    rest = list(values)
    first, rest = rest[:count], rest[count:]
    packed = (value if isinstance(value, tuple) else (value,) for value in rest)
    return [*first, *(pytest.param(*value, marks=pytest.mark.slow) for value in packed)]
