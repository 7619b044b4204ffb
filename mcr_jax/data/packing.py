"""Which examples share a row: a deterministic plan, a pure function of lengths, seed and epoch."""

from collections.abc import Iterable, Sequence

import numpy as np

VERSION = 2  # of the algorithm: whatever changes a plan changes this
LOOK_AHEAD = 64  # how far beyond the first example that does not fit a row may choose


def plan(lengths: Sequence[int], capacity: int, seed: int, epoch: int) -> list[list[int]]:
    """Packs all examples once: they queue in an order drawn from (seed, epoch), and row by row the
    head of the queue is joined by those behind it that together fill the row best.

    It stays a fair shuffle, because a row only chooses near the head of the queue: the examples in
    the first rows, however many, are the first of the queue but for some LOOK_AHEAD at the edge.

    Args:
      lengths: tokens of each example, each at most `capacity`.
      capacity: tokens of a row.
      seed: with `epoch`, fixes the order.
      epoch: pass over the data.

    Returns:
      Rows of example indices; every index stands in exactly one row. A prefix of them is a fair
      sample.

    Raises:
      ValueError: an example is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens is longer than a row of {capacity}")
    sizes = [int(length) for length in lengths]
    queue = np.random.default_rng((seed, epoch)).permutation(len(sizes))[::-1].tolist()
    rows = []
    while queue:  # its head is the list's end
        head = queue.pop()
        joined = _fullest((sizes[i] for i in reversed(queue)), capacity - sizes[head])
        rows.append([head, *(queue[-1 - place] for place in joined)])
        for place in reversed(joined):
            del queue[-1 - place]
    return rows


def _fullest(sizes: Iterable[int], space: int) -> list[int]:
    """Places in `sizes` of those whose sum is the largest within `space`; the earliest such.

    Subset sum by dynamic programming: bit s of `sums[k]` tells that some of the first k sizes add
    up to s. It ends where the space can be filled, or LOOK_AHEAD sizes after it is passed in order.
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
