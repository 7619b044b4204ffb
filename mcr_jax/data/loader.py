"""Batches of packed rows, each a pure function of (examples, seed, step)."""

import bisect
import contextlib
import hashlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from mcr_jax.data import packing
from mcr_jax.data.cache import cached
from mcr_jax.data.example import Example
from mcr_jax.workdir import digest

Batch = dict[str, np.ndarray]

_MIN_CACHED_EXAMPLES = 1_000  # plans of fewer are not kept in files
_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # batches


class Batches:
    """Endless training batches over packed epochs.

    Batch `step` holds rows from step * rows on of all epochs in sequence, so no example is lost at
    an epoch's end. Any thread of any host may read any step.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        rows: int,
        row_tokens: int,
        seed: int,
        folder: Path | None = None,
    ):
        """Plans no epoch yet.

        Args:
          examples: at least one, none longer than a row.
          rows: packed rows per batch.
          row_tokens: tokens of a row.
          seed: with the epoch, decides the order of the examples.
          folder: of the epochs' plans, which keep the order of a run if numpy's random numbers
            change; None, or few examples, keep none.
        """
        if not examples:
            raise ValueError("there is no example to make batches of")
        self._examples, self._rows, self._row_tokens = examples, rows, row_tokens
        self._seed, self._folder = seed, folder
        lengths = getattr(examples, "lengths", None)  # of `tokens.Tokens`, without reading them
        if lengths is None:
            lengths = [len(e.ids) for e in examples]
        self._lengths = np.array(lengths, np.int64)
        self._epochs: list[list[np.ndarray]] = []  # planned epochs: rows of example indices
        self._starts = [0]  # first row of each planned epoch, and of the next
        self._planning = threading.Lock()

    def __getitem__(self, step: int) -> Batch:
        """Returns tokens, targets, positions, segment_ids (int32) and weights (float32) of a step.

        Each is [rows, row_tokens]. Segment 0 is padding.
        """
        packed = [[self._examples[i] for i in row] for row in self._packed(step)]
        return stack(packed, self._row_tokens)

    def read(self, first: int, stop: int) -> Iterator[Batch]:
        """Yields batches `first` to `stop` - 1, prefetched by threads until it is closed.

        Raises:
          McrError: an epoch's plan cannot be written.
        """
        steps = grain.MapDataset.range(first, stop).map(self.__getitem__)
        with contextlib.closing(iter(steps.to_iter_dataset(_PREFETCH))) as made:
            yield from made

    def fingerprints(self, step: int) -> list[str]:
        """Returns the case fingerprints of a batch, in the order of its rows and segments."""
        return [self._examples[i].fingerprint for row in self._packed(step) for i in row]

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the data in the steps before `step`."""
        epoch, row = self._place(step * self._rows)
        return epoch + row / len(self._epochs[epoch])

    def steps(self, epochs: float) -> int:
        """Returns the steps of a number of passes; the last may reach into the next pass."""
        last = max(math.ceil(epochs) - 1, 0)
        self._plan(last)
        rows = self._starts[last] + (epochs - last) * len(self._epochs[last])
        steps = math.ceil(round(rows, 6) / self._rows)  # 0.1 of 30 rows is 3
        return max(steps, 1 if epochs > 0 else 0)

    @property
    def filled(self) -> float:
        """Returns the share of tokens of epoch 0 that are not padding."""
        self._plan(0)
        return float(self._lengths.sum() / (len(self._epochs[0]) * self._row_tokens))

    def _packed(self, step: int) -> list[np.ndarray]:
        if step < 0:
            raise IndexError(f"steps count from 0, and this is {step}")
        places = map(self._place, range(step * self._rows, (step + 1) * self._rows))
        return [self._epochs[epoch][row] for epoch, row in places]

    def _place(self, row: int) -> tuple[int, int]:
        """Returns the epoch of a row of all epochs, and its index there."""
        while self._starts[-1] <= row:
            self._plan(len(self._epochs))
        epoch = bisect.bisect_right(self._starts, row) - 1
        return epoch, row - self._starts[epoch]

    def _plan(self, epoch: int) -> None:
        """Plans all epochs up to this one."""
        with self._planning:
            while len(self._epochs) <= epoch:
                rows = self._rows_of(len(self._epochs))
                self._epochs.append(rows)
                self._starts.append(self._starts[-1] + len(rows))

    def _rows_of(self, epoch: int) -> list[np.ndarray]:
        arguments = (self._row_tokens, self._seed, epoch)
        path = None
        if self._folder is not None and len(self._lengths) >= _MIN_CACHED_EXAMPLES:
            lengths = hashlib.sha256(self._lengths).hexdigest()
            path = self._folder / f"plan-{digest([packing.VERSION, lengths, *arguments])[:32]}"

        def make() -> dict[str, np.ndarray]:
            rows = packing.plan(self._lengths.tolist(), *arguments)
            return {
                "examples": np.fromiter(itertools.chain.from_iterable(rows), np.int64),
                "ends": np.cumsum([len(row) for row in rows]),
            }

        made = cached(path, make)
        return np.split(made["examples"], made["ends"][:-1])


def fixed_batches(examples: Sequence[Example], rows: int, row_tokens: int) -> list[Batch]:
    """Packs all examples once in a fixed order, for validation; fills up with empty rows."""
    packed = packing.plan([len(e.ids) for e in examples], row_tokens, 0, 0)
    packed += [[] for _ in range(-len(packed) % rows)]
    return [
        stack([[examples[i] for i in row] for row in packed[first : first + rows]], row_tokens)
        for first in range(0, len(packed), rows)
    ]


def stack(packed: Sequence[Sequence[Example]], row_tokens: int) -> Batch:
    """Lays examples side by side in rows; targets and weights are shifted by one in a segment."""
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
