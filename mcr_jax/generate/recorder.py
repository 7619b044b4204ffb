"""Writes attempts into the ledger from a thread of its own: what arrives together is one fsync."""

import queue
import threading
from collections.abc import Callable, Sequence

from mcr_jax.generate.ledger import Attempt, Ledger
from mcr_jax.sigterm import deferred

_BATCH_S = 0.02  # rows that arrive within this time of the first are written with it


class Recorder:
    """A context manager; leaving it writes what is left.

    Raises McrError from `put`, `check` and on leaving, if rows cannot be written.
    """

    def __init__(self, ledger: Ledger, progress: Callable[[int], None]):
        """Rows go to `ledger`; `progress` is told of settled rows once they are durable."""
        self._ledger, self._progress = ledger, progress
        self._rows: queue.SimpleQueue[tuple[Sequence[Attempt], int] | None] = queue.SimpleQueue()
        # A daemon: a signal between its start and the block would leave it waiting for rows, and
        # Python waits for every other thread when it exits.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._problem: Exception | None = None
        self._closing = threading.Event()

    def put(self, rows: Sequence[Attempt], settled: int) -> None:
        """Takes the rows that one call answered, `settled` of which are not open any more."""
        self.check()
        self._rows.put((rows, settled))

    def check(self) -> None:
        """Raises what ended the writing, if anything has."""
        if self._problem is not None:
            raise self._problem

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        with deferred():  # the ledger is not to be closed before the last rows are in it
            self._rows.put(None)
            self._closing.set()
            self._thread.join()
        if kind is None:  # or it would hide what ended the block
            self.check()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as problem:  # noqa: BLE001 - raised again by `check`, in the caller's thread
            self._problem = problem

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
