"""SIGTERM, as a scheduler sends it before it takes the machine away: the work stops and says so."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mcr_jax.errors import Stopped

_AGAIN_S = 0.05  # by then the callback is over


def hears() -> bool:
    """Whether signals come to this thread."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def stoppable(told: str, asked: threading.Event | None = None) -> Iterator[None]:
    """SIGTERM ends the block wherever it is, as Ctrl-C does; in a thread that hears none, nothing.

    Args:
      told: the line of `Stopped`.
      asked: set when the signal comes, for what may go on after it in the block.

    Raises:
      Stopped: the signal came, also where what was under way took it for a fault of its own.
    """
    if not hears():
        yield
        return
    asked, ignored = asked or threading.Event(), threading.Event()
    asked.clear()

    def stop(*_: object) -> None:
        asked.set()
        ignored.clear()
        raise Stopped(told)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _again_where_ignored(ignored):
            yield
        if ignored.is_set():  # the block ended before the signal was raised again
            raise Stopped(told)
    except Exception as error:
        if asked.is_set() and not isinstance(error, Stopped):
            raise Stopped(told) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _again_where_ignored(pending: threading.Event) -> Iterator[None]:
    """Raises the signal again where it came in a callback whose exceptions Python ignores.

    Such are finalizers and callbacks of the garbage collector, jax's among them. `pending` is set
    until then.
    """
    before, over = sys.unraisablehook, threading.Event()

    def again() -> None:
        if not over.wait(_AGAIN_S):
            os.kill(os.getpid(), signal.SIGTERM)

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if isinstance(ignored.exc_value, Stopped):
            pending.set()
            threading.Thread(target=again, daemon=True).start()
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = before


@contextlib.contextmanager
def caught(call: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `call` with their number and end nothing while the block runs.

    In a thread that hears none, nothing.
    """
    if not hears():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, _: call(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """SIGTERM and SIGINT wait until the block is over, and come then."""
    came: list[int] = []
    try:
        with caught(came.append):
            yield
    finally:
        if came:
            signal.raise_signal(came[-1])
