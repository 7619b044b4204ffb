"""Batches of packed rows, each a function of (examples, seed, step): nothing to save."""

import functools
from collections.abc import Sequence

import numpy as np

from mcr_jax.data.example import Example
from mcr_jax.data.packing import plan

Batch = dict[str, np.ndarray]


class Batches:
    """Endless training batches over packed epochs.

    Batch `step` holds rows step * rows … of the epochs laid end to end, so no example is lost at an
    epoch's end and any step can be asked for at any time.
    """

    def __init__(self, examples: Sequence[Example], rows: int, row_tokens: int, seed: int):
        """`rows` packed rows of `row_tokens` tokens per batch."""
        self._examples, self._rows, self._row_tokens = examples, rows, row_tokens
        lengths = [len(e.ids) for e in examples]
        self._plan = functools.lru_cache(2)(lambda epoch: plan(lengths, row_tokens, seed, epoch))
        self._starts = [0]  # first row of each epoch planned so far

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`: tokens, targets, positions, segment_ids int32 and weights float32,
        each [rows, row_tokens]. Segment 0 is padding."""
        first = step * self._rows
        packed = [self._row(row) for row in range(first, first + self._rows)]
        return stack([[self._examples[i] for i in row] for row in packed], self._row_tokens)

    def epoch(self, step: int) -> float:
        """How many passes over the data the steps before `step` have made."""
        row = step * self._rows
        epoch = self._epoch_of(row)
        return epoch + (row - self._starts[epoch]) / len(self._plan(epoch))

    def _row(self, row: int) -> list[int]:
        epoch = self._epoch_of(row)
        return self._plan(epoch)[row - self._starts[epoch]]

    def _epoch_of(self, row: int) -> int:
        while self._starts[-1] <= row:
            self._starts.append(self._starts[-1] + len(self._plan(len(self._starts) - 1)))
        return next(e for e, start in enumerate(self._starts[1:]) if row < start)


def fixed_batches(examples: Sequence[Example], rows: int, row_tokens: int) -> list[Batch]:
    """All examples once, packed in an order that never changes: for validation.

    The last batch is filled up with empty rows.
    """
    packed = plan([len(e.ids) for e in examples], row_tokens, 0, 0)
    packed += [[] for _ in range(-len(packed) % rows)]
    return [
        stack([[examples[i] for i in row] for row in packed[first : first + rows]], row_tokens)
        for first in range(0, len(packed), rows)
    ]


def stack(packed: Sequence[Sequence[Example]], row_tokens: int) -> Batch:
    """Lays examples side by side in rows; targets and weights look one token ahead in a segment."""
    shape = (len(packed), row_tokens)
    batch = {
        name: np.zeros(shape, np.int32)
        for name in ("tokens", "targets", "positions", "segment_ids")
    }
    batch["weights"] = np.zeros(shape, np.float32)
    for r, row in enumerate(packed):
        start = 0
        for segment, e in enumerate(row, 1):
            stop = start + len(e.ids)
            batch["tokens"][r, start:stop] = e.ids
            batch["targets"][r, start : stop - 1] = e.ids[1:]
            batch["weights"][r, start : stop - 1] = e.trained[1:]
            batch["positions"][r, start:stop] = np.arange(stop - start)
            batch["segment_ids"][r, start:stop] = segment
            start = stop
    return batch
