"""Which examples share a row: a deterministic plan, a pure function of lengths, seed and epoch."""

from collections.abc import Sequence

import numpy as np

OPEN_ROWS = 32  # how far back a gap is still looked for


def plan(lengths: Sequence[int], capacity: int, seed: int, epoch: int) -> list[list[int]]:
    """Packs all examples once, in an order drawn from (seed, epoch), best fit over recent rows.

    Args:
      lengths: tokens of each example, each at most `capacity`.
      capacity: tokens of a row.
      seed: with `epoch`, fixes the order.
      epoch: pass over the data.

    Returns:
      Rows of example indices; every index stands in exactly one row. The rows are in the order
      they were opened, which is random in content, so a prefix of them is a fair sample.

    Raises:
      ValueError: an example is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens is longer than a row of {capacity}")
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    rows: list[list[int]] = []
    space: list[int] = []
    for index in order.tolist():
        first = max(0, len(rows) - OPEN_ROWS)
        fits = [r for r in range(first, len(rows)) if space[r] >= lengths[index]]
        if fits:
            row = min(fits, key=space.__getitem__)
            rows[row].append(index)
        else:
            row = len(rows)
            rows.append([index])
            space.append(capacity)
        space[row] -= lengths[index]
    return rows
