"""Packing of examples into rows: a pure function of lengths, seed and epoch."""

from collections.abc import Iterable, Sequence

import numpy as np

VERSION = 2  # of the algorithm; must change whenever plans change
LOOK_AHEAD = 64  # examples considered after the first one that does not fit a row


def plan(lengths: Sequence[int], capacity: int, seed: int, epoch: int) -> list[list[int]]:
    """Packs all examples once.

    The examples form a queue in random order. Each row takes the head of the queue and those of the
    next examples that fill the row best. A row chooses near the head only, so the first rows hold
    the first examples of the queue but for about LOOK_AHEAD: the shuffle stays fair.

    Args:
      lengths: tokens of each example, each at most `capacity`.
      capacity: tokens of a row.
      seed: with `epoch`, decides the order.
      epoch: pass over the data.

    Returns:
      Rows of example indices; every index is in exactly one row.

    Raises:
      ValueError: an example is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens is longer than a row of {capacity}")
    sizes = [int(length) for length in lengths]
    queue = np.random.default_rng((seed, epoch)).permutation(len(sizes))[::-1].tolist()
    rows = []
    while queue:  # the head is at the end of the list
        head = queue.pop()
        joined = _fullest((sizes[i] for i in reversed(queue)), capacity - sizes[head])
        rows.append([head, *(queue[-1 - place] for place in joined)])
        for place in reversed(joined):
            del queue[-1 - place]
    return rows


def _fullest(sizes: Iterable[int], space: int) -> list[int]:
    """Returns the earliest places in `sizes` whose sum is the largest one up to `space`.

    Subset sum by dynamic programming: bit s of `sums[k]` is set if some of the first k sizes add up
    to s. It ends when the space can be filled, or LOOK_AHEAD sizes after it was exceeded in order.
    """
    within = (1 << space + 1) - 1
    sums, taken = [1], []
    total = passed = 0
    for size in sizes:
        total += size
        passed += total > space
        if sums[-1] >> space or passed > LOOK_AHEAD:
            break
        sums.append(sums[-1] | sums[-1] << size & within)
        taken.append(size)
    rest, chosen = sums[-1].bit_length() - 1, []
    for place in range(len(taken) - 1, -1, -1):
        if not sums[place] >> rest & 1:
            chosen.append(place)
            rest -= taken[place]
    return chosen[::-1]
