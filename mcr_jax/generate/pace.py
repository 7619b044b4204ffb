"""Decides when the next call to a service may start: one limit and one backoff for all its calls.

The limit on calls in flight falls and rises as TCP's window does: halved when the service says that
it is busy, one more per round of answers otherwise. While nothing answers, one call at a time tries
whether the service is there again.
"""

import enum
import random
import time
from collections.abc import Callable

_DOWN = 5  # failures in a row after which one call at a time tries


class Fault(enum.StrEnum):
    """Why a call got no answer."""

    AWAY = "away"  # no connection
    BUSY = "busy"  # the service says so: too many requests, overloaded
    FAILED = "failed"  # all else, which may be due to the request: an error, a timeout, a cut reply


class Pacer:
    """Limit and backoff of one service. Not for several threads, but `status` may be read by any.

    Attributes:
      error: the last failure, one line.
    """

    def __init__(
        self,
        most: int,
        *,
        patience: float = 600.0,
        backoff: float = 1.0,
        longest: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts with all `most` calls allowed.

        Args:
          most: calls in flight at most.
          patience: seconds without any answer after which waiting is given up.
          backoff: seconds of the first wait, doubled by each further one, jittered.
          longest: seconds that it grows to. A wait that the service names replaces it.
          clock: seconds that only rise.
        """
        self._most, self._patience, self._clock = most, patience, clock
        self._backoff, self._longest = backoff, min(longest, patience)
        self._limit = self._threshold = float(most)
        self._in_flight = self._failures = self._waits = 0
        self._silent_since: float | None = None  # the first failure after the last answer
        self._resume_at = self._cut_at = self._waited_at = float("-inf")
        self.error = ""

    def begin(self) -> float:
        """A call starts; returns the time, which `answered` and `failed` take."""
        self._in_flight += 1
        return self._clock()

    def end(self) -> None:
        """A call has ended, in whatever way."""
        self._in_flight -= 1

    def answered(self) -> None:
        """The service gave an answer, good or bad."""
        self._silent_since, self._failures, self._waits = None, 0, 0
        step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
        self._limit = min(float(self._most), self._limit + step)

    def failed(self, began: float, fault: Fault, wait: float | None, error: str) -> None:
        """A call that started at `began` got no answer; the service asked for `wait` seconds.

        Of calls in flight together, the first to fail decides for all of them.
        """
        now = self._clock()
        self.error = error
        self._failures += 1
        if self._silent_since is None:
            self._silent_since = now
        if fault is Fault.BUSY and began >= self._cut_at:
            self._limit = self._threshold = max(1.0, self._limit / 2)
            self._cut_at = now
        if self._is_down:
            self._limit = 1.0
        if wait is not None:
            self._resume_at = max(self._resume_at, now + wait)
        elif (fault is not Fault.FAILED or self._is_down) and began >= self._waited_at:
            pause = min(self._backoff * 2**self._waits, self._longest) * random.uniform(0.5, 1.0)
            self._resume_at = max(self._resume_at, now + pause)
            self._waits, self._waited_at = self._waits + 1, now

    @property
    def _is_down(self) -> bool:
        return self._failures >= _DOWN

    def wait(self) -> float | None:
        """Seconds until another call may start; None while only the end of a call can allow it."""
        if self._in_flight >= int(self._limit):
            return None
        return max(0.0, self._resume_at - self._clock())

    def left(self) -> float | None:
        """Seconds until waiting is given up, 0 or less when it is; None while answers come."""
        now = self._clock()
        if self._resume_at - now > self._patience:
            return 0.0
        return None if self._silent_since is None else self._silent_since + self._patience - now

    def status(self) -> str:
        """Progress of the calls, for a progress line."""
        now, since = self._clock(), self._silent_since
        pause = max(0.0, self._resume_at - now)
        if since is not None and self._is_down:
            return (
                f"no answer for {now - since:.0f} s ({self.error}); next try in {pause:.0f} s, "
                f"giving up in {max(0.0, since + self._patience - now):.0f} s"
            )
        line = f"{self._in_flight} in flight, limit {int(self._limit)}"
        return f"{line}, waiting {pause:.0f} s ({self.error})" if pause >= 1 else line

    def given_up(self) -> str:
        """Why waiting was given up, one line."""
        now = self._clock()
        if (asked := self._resume_at - now) > self._patience:
            return f"the service asks to wait {asked:,.0f} s ({self.error})"
        return f"no answer for {now - (self._silent_since or now):,.0f} s ({self.error})"
