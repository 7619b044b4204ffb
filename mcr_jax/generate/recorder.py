"""Writes attempts into the ledger from a thread of its own: what arrives together is one fsync."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from mcr_jax.generate.ledger import Attempt, Ledger
from mcr_jax.sigterm import held

_BATCH_S = 0.02  # rows that arrive within this time of the first are written with it


class Recorder:
    """A context manager; leaving it writes what is left.

    Raises McrError from `put`, `check` and on leaving, if rows cannot be written.
    """

    def __init__(self, ledger: Ledger, progress: Callable[[int], None]):
        """Rows go to `ledger`; `progress` is told of settled rows once they are durable."""
        self._ledger, self._progress = ledger, progress
        self._rows: queue.SimpleQueue[tuple[Sequence[Attempt], int] | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._work_done: Future[None] = Future()
        self._closing = threading.Event()

    def put(self, rows: Sequence[Attempt], settled: int) -> None:
        """Takes the rows that one call answered, `settled` of which are not open any more."""
        self.check()
        self._rows.put((rows, settled))

    def check(self) -> None:
        """Raises what ended the writing, if anything has."""
        if self._work_done.done():
            self._work_done.result()

    def __enter__(self) -> "Recorder":
        self._work_done = self._threads.submit(self._work)
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        with held():  # the ledger is not to be closed before the last rows are in it
            self._rows.put(None)
            self._closing.set()
            self._threads.shutdown()
        if kind is None:  # or it would hide what ended the block
            self.check()

    def _work(self) -> None:
        going = True
        while going and (item := self._rows.get()) is not None:
            # Asleep, not waiting at the queue: every row would wake this thread.
            self._closing.wait(_BATCH_S)
            batch = [item]
            while not self._rows.empty():  # nobody else takes from it
                item = self._rows.get()
                if item is None:
                    going = False
                else:
                    batch.append(item)
            self._ledger.write_all(rows for rows, _ in batch)
            if settled := sum(count for _, count in batch):
                self._progress(settled)
