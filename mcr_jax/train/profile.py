"""A trace of a few steps on demand, for TensorBoard's or Perfetto's profile viewer."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from mcr_jax import console
from mcr_jax.errors import UsageError

STEPS = 5  # of a trace that a signal asks for


def steps(text: str) -> range:
    """The steps that "FIRST" or "FIRST:COUNT" means. Raises UsageError if it means none."""
    first, _, count = text.partition(":")
    try:
        wanted = range(int(first), int(first) + (int(count) if count else STEPS))
    except ValueError:
        wanted = range(0)
    if not wanted or wanted[0] < 1:
        raise UsageError(f"--profile={text}: it is FIRST_STEP or FIRST_STEP:COUNT, such as 20:5")
    return wanted


class Profiler:
    """Traces the steps it was told to, and on SIGUSR1 the next few.

    Args:
      folder: where traces go, one folder each.
      wanted: steps to trace.
    """

    def __init__(self, folder: Path, wanted: range = range(0)):
        self._folder, self._wanted = folder, wanted
        self._asked = threading.Event()
        self._tracing: range | None = None  # the steps that the open trace holds
        self._made, self._step = False, 0

    def before(self, step: int) -> None:
        """To be called before `step` starts, the metrics of all steps but the last one read."""
        self._step = step
        # The step before may be under way still when this one starts, so the trace has its end.
        if self._tracing and step > self._tracing[-1] + 1:
            self._stop(step - 1)
        if self._tracing:
            return
        if self._asked.is_set():
            self._asked.clear()
            self._start(range(step, step + STEPS))
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
        """Hears SIGUSR1 while the block runs, and ends a trace that is open at its end."""
        main = threading.current_thread() is threading.main_thread()  # which alone can listen
        before = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set()) if main else None
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
