"""Batches of packed rows, each a function of (examples, seed, step): nothing to save."""

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

_WORTH_A_FILE = 1_000  # examples; fewer are planned anew in no time, and files would pile up
_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # batches, made before their time


class Batches:
    """Endless training batches over packed epochs.

    Batch `step` holds rows step * rows … of the epochs laid end to end, so no example is lost at an
    epoch's end and any step can be asked for at any time, from any thread, by any number of hosts.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        rows: int,
        row_tokens: int,
        seed: int,
        folder: Path | None = None,
    ):
        """Plans nothing yet.

        Args:
          examples: at least one, none longer than a row.
          rows: packed rows per batch.
          row_tokens: tokens of a row.
          seed: with the number of an epoch, decides the order of its examples.
          folder: where the plan of each epoch is kept, so that a run goes on in its order whatever
            numpy makes of a seed by then; None keeps none, nor are those of a few examples.
        """
        if not examples:
            raise ValueError("there is no example to make batches of")
        self._examples, self._rows, self._row_tokens = examples, rows, row_tokens
        self._seed, self._folder = seed, folder
        lengths = getattr(examples, "lengths", None)  # `tokens.Tokens` knows without reading
        if lengths is None:
            lengths = [len(e.ids) for e in examples]
        self._lengths = np.array(lengths, np.int64)
        self._epochs: list[list[np.ndarray]] = []  # rows of example indices, planned so far
        self._starts = [0]  # first row of each of them, and of the next
        self._planning = threading.Lock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`: tokens, targets, positions, segment_ids int32 and weights float32,
        each [rows, row_tokens]. Segment 0 is padding."""
        packed = [[self._examples[i] for i in row] for row in self._packed(step)]
        return stack(packed, self._row_tokens)

    def read(self, first: int, stop: int) -> Iterator[Batch]:
        """Batches first … stop-1 in order, each made ahead of time by threads.

        Their work ends when the iterator is closed or forgotten.

        Raises:
          McrError: an epoch's plan cannot be written.
        """
        steps = grain.MapDataset.range(first, stop).map(self.__getitem__)
        with contextlib.closing(iter(steps.to_iter_dataset(_AHEAD))) as made:
            yield from made

    def fingerprints(self, step: int) -> list[str]:
        """Whose cases are in a batch, in the order of its rows and segments."""
        return [self._examples[i].fingerprint for row in self._packed(step) for i in row]

    def epoch(self, step: int) -> float:
        """Number of passes over the data that the steps before `step` have made."""
        epoch, row = self._place(step * self._rows)
        return epoch + row / len(self._epochs[epoch])

    def steps(self, epochs: float) -> int:
        """Number of steps that a number of passes takes; the last may reach into another pass."""
        last = max(math.ceil(epochs) - 1, 0)
        self._plan(last)
        rows = self._starts[last] + (epochs - last) * len(self._epochs[last])
        steps = math.ceil(round(rows, 6) / self._rows)  # 0.1 of 30 rows are no more than 3
        return max(steps, 1 if epochs > 0 else 0)

    @property
    def filled(self) -> float:
        """The share of token slots that epoch 0 fills; the rest is padding."""
        self._plan(0)
        return float(self._lengths.sum() / (len(self._epochs[0]) * self._row_tokens))

    def _packed(self, step: int) -> list[np.ndarray]:
        if step < 0:
            raise IndexError(f"steps count from 0, and this is {step}")
        places = map(self._place, range(step * self._rows, (step + 1) * self._rows))
        return [self._epochs[epoch][row] for epoch, row in places]

    def _place(self, row: int) -> tuple[int, int]:
        """The epoch that holds a row of them all, and the row's number there."""
        while self._starts[-1] <= row:
            self._plan(len(self._epochs))
        epoch = bisect.bisect_right(self._starts, row) - 1
        return epoch, row - self._starts[epoch]

    def _plan(self, epoch: int) -> None:
        """Sees to it that all epochs up to this one are planned."""
        with self._planning:
            while len(self._epochs) <= epoch:
                rows = self._rows_of(len(self._epochs))
                self._epochs.append(rows)
                self._starts.append(self._starts[-1] + len(rows))

    def _rows_of(self, epoch: int) -> list[np.ndarray]:
        arguments = (self._row_tokens, self._seed, epoch)
        path = None
        if self._folder is not None and len(self._lengths) >= _WORTH_A_FILE:
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
    """All examples once, packed in an order that never changes: for validation.

    The last batch is filled up with empty rows.
    """
    packed = packing.plan([len(e.ids) for e in examples], row_tokens, 0, 0)
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
