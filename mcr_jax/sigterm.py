"""Handling of SIGTERM, which a scheduler sends before it takes the machine away."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mcr_jax.errors import Stopped

_CALLBACK_S = 0.05  # a callback that ignored the signal has ended after this time


def in_main_thread() -> bool:
    """Returns True in the main thread, the only one in which Python handles signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def stoppable(message: str, received: threading.Event | None = None) -> Iterator[None]:
    """Lets SIGTERM end the block anywhere, like Ctrl-C. Does nothing outside the main thread.

    Args:
      message: the message of `Stopped`.
      received: set when the signal arrives, for code in the block that catches `Stopped`.

    Raises:
      Stopped: the signal arrived, also if the block caught it and raised another exception.
    """
    if not in_main_thread():
        yield
        return
    received, ignored = received or threading.Event(), threading.Event()
    received.clear()

    def stop(*_: object) -> None:
        received.set()
        ignored.clear()
        raise Stopped(message)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _repeated_if_ignored(ignored):
            yield
        if ignored.is_set():  # the block ended before the signal was raised again
            raise Stopped(message)
    except Exception as error:
        if received.is_set() and not isinstance(error, Stopped):
            raise Stopped(message) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _repeated_if_ignored(pending: threading.Event) -> Iterator[None]:
    """Raises SIGTERM again if it arrived in a callback whose exceptions Python ignores.

    Such callbacks are finalizers and those of the garbage collector, for example of jax. `pending`
    is set until the signal is raised again.
    """
    before, over = sys.unraisablehook, threading.Event()

    def repeat() -> None:
        if not over.wait(_CALLBACK_S):
            os.kill(os.getpid(), signal.SIGTERM)

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if isinstance(ignored.exc_value, Stopped):
            pending.set()
            threading.Thread(target=repeat, daemon=True).start()
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
    """Makes SIGTERM and SIGINT call `call` with their number instead of ending the block.

    Does nothing outside the main thread.
    """
    if not in_main_thread():
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
def deferred() -> Iterator[None]:
    """Delays SIGTERM and SIGINT to the end of the block."""
    received: list[int] = []
    try:
        with caught(received.append):
            yield
    finally:
        if received:
            signal.raise_signal(received[-1])
