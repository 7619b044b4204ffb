"""Traces of a few training steps for the profile viewer of TensorBoard or Perfetto."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from mcr_jax import console
from mcr_jax.errors import UsageError

SIGNAL_STEPS = 5  # steps traced after SIGUSR1


def steps(text: str) -> range:
    """Parses "FIRST" or "FIRST:COUNT". Raises UsageError if it is neither."""
    first, _, count = text.partition(":")
    try:
        wanted = range(int(first), int(first) + (int(count) if count else SIGNAL_STEPS))
    except ValueError:
        wanted = range(0)
    if not wanted or wanted[0] < 1:
        raise UsageError(f"--profile={text}: it is FIRST_STEP or FIRST_STEP:COUNT, such as 20:5")
    return wanted


class Profiler:
    """Traces the steps `wanted`, and the next SIGNAL_STEPS after SIGUSR1.

    Args:
      folder: receives a folder for each trace.
      wanted: steps to trace.
    """

    def __init__(self, folder: Path, wanted: range = range(0)):
        self._folder, self._wanted = folder, wanted
        self._signalled = threading.Event()
        self._tracing: range | None = None  # steps of the open trace
        self._made, self._step = False, 0

    def before(self, step: int) -> None:
        """Starts and stops traces; call it before `step` is dispatched, with one in flight."""
        self._step = step
        # The step before may still be in flight, so a trace stops one step late.
        if self._tracing and step > self._tracing[-1] + 1:
            self._stop(step - 1)
        if self._tracing:
            return
        if self._signalled.is_set():
            self._signalled.clear()
            self._start(range(step, step + SIGNAL_STEPS))
        elif step in self._wanted:
            self._start(range(step, self._wanted[-1] + 1))

    def _start(self, steps: range) -> None:
        jax.profiler.start_trace(self._folder)
        self._tracing, self._made = steps, True

    def _stop(self, last: int) -> None:
        jax.profiler.stop_trace()
        first, last = self._tracing[0], min(last, self._tracing[-1])
        self._tracing = None
        console.say(f"  steps {first} to {last} are traced in {self._folder}")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles SIGUSR1 during the block; stops an open trace at its end."""
        main = threading.current_thread() is threading.main_thread()  # others get no signals
        before = signal.signal(signal.SIGUSR1, lambda *_: self._signalled.set()) if main else None
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGUSR1, before)
            if self._tracing:
                self._stop(self._step)
            elif self._wanted and not self._made:
                first, last = self._wanted[0], self._wanted[-1]
                console.say(f"  no step of {first} to {last} was made: there is no trace")
