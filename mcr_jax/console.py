"""Progress of long work: one live line on a terminal, sparse lines in a log."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

_silent = False


def silence(silent: bool) -> None:
    """Whether all below is left out from here on: of several processes one speaks for all."""
    global _silent
    _silent = silent


def say(message: str) -> None:
    """Prints one line, at once even into a pipe."""
    if not _silent:
        print(message, flush=True)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_log() -> None:
    """Prints what the package logs at INFO from now on, such as the attention backend it chose."""
    logger = logging.getLogger("mcr_jax")
    if not any(isinstance(handler, _Said) for handler in logger.handlers):
        logger.addHandler(_Said())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Track:
    """Progress of one piece of work; made by `track`."""

    def __init__(
        self,
        description: str,
        total: int,
        done: int,
        live: object | None,
        task: object,
        status: Callable[[], str] | None = None,
    ):
        self.description, self.total, self.done = description, total, done
        self._live, self._task, self._status = live, task, status
        self._lock = threading.Lock()
        self._spoken = time.monotonic()
        self._lines = 0  # said in a log so far
        self._over = 0 < total <= done  # whether the line of the total was said, or none is due
        # Where and when the first unit was done: it takes longer than the others, it compiles.
        self._steady: tuple[int, float] | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units and shows `note` beside them."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Sets the finished units to `done`, and the units in all where they are known only now."""
        with self._lock:
            self.total = self.total if total is None else total
            if self._steady is None and done > self.done:
                self._steady = (done, time.monotonic())
            self.done = done
            self._show(note)

    def refresh(self) -> None:
        """Shows the status anew, where no unit may be finished for long."""
        with self._lock:
            self._show("")

    def _show(self, note: str) -> None:
        done, now = self.done, time.monotonic()
        if self._status is not None:
            note = self._status()
        if self._live is not None:
            self._live.update(self._task, completed=done, total=self.total, note=note)
        elif not self._over:
            self._log(done, now, note)

    def _log(self, done: int, now: float, note: str) -> None:
        """Says a line every 10 s and one at the total; nothing of work that is done sooner."""
        self._over = 0 < self.total <= done
        if now - self._spoken < 10 and not (self._over and self._lines):
            return
        self._spoken = now
        self._lines += 1
        left = ""
        if self._steady and self._steady[0] < done < self.total:
            seconds = (now - self._steady[1]) / (done - self._steady[0])
            left = f", {(self.total - done) * seconds:.0f} s left"
        say(f"  {self.description}: {done}/{self.total}{left}  {note}".rstrip())


@contextlib.contextmanager
def track(
    description: str, total: int, done: int = 0, status: Callable[[], str] | None = None
) -> Iterator[Track]:
    """Shows progress of `total` units, `done` of them finished before, while the block runs.

    A `status` stands beside them in place of notes. It is asked every second, also while no unit
    is finished, and from another thread.
    """
    if _silent or not sys.stdout.isatty():
        with _refreshing(Track(description, total, done, None, None, status), status) as made:
            yield made
        return
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    # On a narrow terminal the note is cut; counts and times never are.
    cut = Column(no_wrap=True, ratio=1, overflow="ellipsis")
    columns = (
        progress.TextColumn("  {task.description}"),
        progress.BarColumn(bar_width=12),
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        progress.TextColumn("{task.fields[note]}", table_column=cut),
    )
    with progress.Progress(*columns, console=Console(), transient=True, expand=True) as live:
        task = live.add_task(description, total=total, completed=done, note="")
        with _refreshing(Track(description, total, done, live, task, status), status) as made:
            yield made


@contextlib.contextmanager
def _refreshing(made: Track, status: Callable[[], str] | None) -> Iterator[Track]:
    """Refreshes it from a thread, if it has a status."""
    if status is None:
        yield made
        return
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(1.0):
            made.refresh()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()
