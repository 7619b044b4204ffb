"""Rate limit and backoff of a service, shared by all its calls.

The limit on calls in flight changes like TCP's congestion window: it is halved when the service
reports that it is busy, and otherwise grows by one per round of answers. During an outage, one call
at a time probes the service.
"""

import enum
import random
import time
from collections.abc import Callable

_OUTAGE_FAILURES = 5  # consecutive failures that count as an outage


class Fault(enum.StrEnum):
    """Cause of a call without an answer."""

    AWAY = "away"  # no connection
    BUSY = "busy"  # the service reports too many requests or overload
    FAILED = "failed"  # any other, perhaps due to the request: an error, a timeout, a cut reply


class Pacer:
    """Rate limit and backoff of one service. Only `status` may be called from another thread.

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
        """Starts with a limit of `most` calls.

        Args:
          most: largest number of calls in flight.
          patience: seconds without any answer before giving up.
          backoff: seconds of the first wait; each further wait doubles, with jitter.
          longest: upper limit of the backoff in seconds; a wait that the service names replaces it.
          clock: monotonic clock, in seconds.
        """
        self._most, self._patience, self._clock = most, patience, clock
        self._backoff, self._longest = backoff, min(longest, patience)
        self._limit = self._threshold = float(most)
        self._in_flight = self._failures = self._waits = 0
        self._silent_since: float | None = None  # the first failure after the last answer
        self._resume_at = self._cut_at = self._waited_at = float("-inf")
        self.error = ""

    def begin(self) -> float:
        """Counts a call that starts; returns its time, which `failed` takes."""
        self._in_flight += 1
        return self._clock()

    def end(self) -> None:
        """Counts a call that ended, with or without an answer."""
        self._in_flight -= 1

    def answered(self) -> None:
        """Records an answer of the service, good or bad."""
        self._silent_since, self._failures, self._waits = None, 0, 0
        step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
        self._limit = min(float(self._most), self._limit + step)

    def failed(self, began: float, fault: Fault, wait: float | None, error: str) -> None:
        """Records a call without an answer, which makes later calls wait.

        Calls that were in flight together lower the limit once and add one backoff.

        Args:
          began: time of the call, from `begin`.
          fault: cause of the failure.
          wait: seconds that the service asks to wait, or None.
          error: one line.
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
        return self._failures >= _OUTAGE_FAILURES

    def wait(self) -> float | None:
        """Returns the seconds until another call may start; None until a call in flight ends."""
        if self._in_flight >= int(self._limit):
            return None
        return max(0.0, self._resume_at - self._clock())

    def left(self) -> float | None:
        """Returns the seconds until giving up, 0 or less after it; None while answers arrive."""
        now = self._clock()
        if self._resume_at - now > self._patience:
            return 0.0
        return None if self._silent_since is None else self._silent_since + self._patience - now

    def status(self) -> str:
        """Returns calls in flight, limit and waits, for a progress line."""
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
        """Returns the cause of giving up, one line."""
        now = self._clock()
        if (pause := self._resume_at - now) > self._patience:
            return f"the service asks to wait {pause:,.0f} s ({self.error})"
        return f"no answer for {now - (self._silent_since or now):,.0f} s ({self.error})"
