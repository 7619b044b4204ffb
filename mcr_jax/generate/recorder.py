"""Writes attempts into the ledger from a separate thread, in batches of one fsync each."""

import queue
import threading
from collections.abc import Callable, Sequence

from mcr_jax.generate.ledger import Attempt, Ledger
from mcr_jax.sigterm import deferred

_BATCH_S = 0.02  # rows that arrive within this time of the first are written together


class Recorder:
    """Context manager that writes rows; on exit it writes all that remain.

    Raises McrError from `put`, `check` and on exit if rows cannot be written.
    """

    def __init__(self, ledger: Ledger, progress: Callable[[int], None]):
        """Writes to `ledger`; calls `progress` with the number of settled rows that are durable."""
        self._ledger, self._progress = ledger, progress
        self._rows: queue.SimpleQueue[tuple[Sequence[Attempt], int] | None] = queue.SimpleQueue()
        # A daemon: after a signal between its start and the block it would wait for rows for ever,
        # and at exit Python waits for every thread that is no daemon.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._problem: Exception | None = None
        self._closing = threading.Event()

    def put(self, rows: Sequence[Attempt], settled: int) -> None:
        """Queues the rows that one call answered, `settled` of which are no longer open."""
        self.check()
        self._rows.put((rows, settled))

    def check(self) -> None:
        """Raises the error that ended the writing, if any."""
        if self._problem is not None:
            raise self._problem

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        with deferred():  # the ledger must stay open until the last rows are written
            self._rows.put(None)
            self._closing.set()
            self._thread.join()
        if kind is None:  # otherwise it would hide the error that ended the block
            self.check()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as problem:  # noqa: BLE001 - raised again by `check`, in the caller's thread
            self._problem = problem

    def _work(self) -> None:
        item = self._rows.get()
        while item is not None:
            # Sleeps instead of waiting at the queue, where every row would wake this thread.
            self._closing.wait(_BATCH_S)
            batch = [item]
            while not self._rows.empty() and (item := self._rows.get()) is not None:
                batch.append(item)
            self._ledger.write_all(rows for rows, _ in batch)
            if settled := sum(count for _, count in batch):
                self._progress(settled)
            if item is not None:
                item = self._rows.get()
