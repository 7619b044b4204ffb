"""Shows progress of long work: one live line on a terminal, sparse lines in a log."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mcr_jax.errors import for_terminal

_LOG_INTERVAL_S = 10  # between two lines in a log
_silent = False


def silence(silent: bool) -> None:
    """Suppresses all output from now on if `silent`: one of several processes prints for all."""
    global _silent
    _silent = silent


def say(message: str) -> None:
    """Prints one line and flushes it; names that it quotes may come from a server or a file."""
    if not _silent:
        print(for_terminal(message), flush=True)


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_log() -> None:
    """Prints what the package logs at INFO from now on, such as the chosen attention backend."""
    logger = logging.getLogger("mcr_jax")
    if not any(isinstance(handler, _Printed) for handler in logger.handlers):
        logger.addHandler(_Printed())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Track:
    """Progress of one task; created by `track`."""

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
        self._last_line = time.monotonic()
        self._lines = 0  # printed in a log so far
        self._over = 0 < total <= done  # True once the last line of the log is printed, or not due
        # Units and time when the first unit was done, which compiles and so takes longest.
        self._steady: tuple[int, float] | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units and shows `note` beside them."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Sets the finished units to `done`, and the total if it is known only now."""
        with self._lock:
            self.total = self.total if total is None else total
            if self._steady is None and done > self.done:
                self._steady = (done, time.monotonic())
            self.done = done
            self._show(note)

    def refresh(self) -> None:
        """Shows the current status, also while no unit finishes."""
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
        """Prints a line every 10 s and one at the end; nothing for work that is done sooner."""
        self._over = 0 < self.total <= done
        if now - self._last_line < _LOG_INTERVAL_S and not (self._over and self._lines):
            return
        self._last_line = now
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

    The text of `status` replaces notes. Another thread calls it every second.
    """
    if _silent or not sys.stdout.isatty():
        with _refreshing(Track(description, total, done, None, None, status), status) as shown:
            yield shown
        return
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    # A narrow terminal cuts the note, never counts and times.
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
        with _refreshing(Track(description, total, done, live, task, status), status) as shown:
            yield shown


@contextlib.contextmanager
def _refreshing(shown: Track, status: Callable[[], str] | None) -> Iterator[Track]:
    """Refreshes `shown` every second from a thread if there is a status."""
    if status is None:
        yield shown
        return
    over = threading.Event()

    def refresh() -> None:
        while not over.wait(1.0):
            shown.refresh()

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join()
