"""Life of a batch job at a service, and its states in the ledger.

planned → submitting → submitted → polling → downloading → done, failed, cancelled or expired. Each
state is in the ledger before the step that it names.
"""

import dataclasses
import datetime
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate._rows import Batch, BatchState
from mcr_jax.generate.batch_wire import Batched, Entry, Look, Unavailable, UnknownJob, UsedUp
from mcr_jax.generate.ledger import Ledger

POLL_S = (10.0, 300.0)  # first and longest wait between two looks at a job
POLL_GROWTH = 1.5
LOOKUP_S = 60.0  # after its submission a job may take so long to appear in the service's list
_CLOCK_SKEW_S = 3600.0  # most difference between the clocks of this machine and the service
_BACKOFF_S = (1.0, 60.0)  # first and longest wait for a service that does not answer
_T = TypeVar("_T")


class Jobs:
    """Batch jobs of a service.

    Args:
      generator: the service.
      ledger: holds the state of every job.
    """

    def __init__(self, generator: Batched, ledger: Ledger):
        self._wire, self._patience = generator.wire, generator.patience
        self._ledger, self._pause = ledger, generator.pause

    def put(self, batch: Batch, **changes: Any) -> Batch:
        """Stores a batch with changes; returns it."""
        return self._ledger.put_batch(dataclasses.replace(batch, **changes))

    def submit(self, batch: Batch, entries: Sequence[Entry], lines: Sequence[bytes]) -> Batch:
        """Stores a planned batch and submits it; returns it with the name of its job.

        Args:
          batch: the batch.
          entries: its requests.
          lines: the requests as JSON.
        """
        self.put(batch)
        try:
            source = self._patiently(lambda: self._wire.upload(batch.id, entries, lines))
        except McrError as error:
            if not isinstance(error, Stopped):
                self.put(batch, state=BatchState.FAILED, error=str(error))
            raise
        return self._submitted(batch, source)

    def _submitted(self, batch: Batch, source: Any) -> Batch:
        """Submits a planned batch, again as long as the service certainly has no job of it."""
        give_up = self._pause.now() + self._patience
        wait = _BACKOFF_S[0]
        while True:
            sent = datetime.datetime.fromtimestamp(self._pause.now(), datetime.UTC)
            batch = self.put(
                batch,
                state=BatchState.SUBMITTING,
                submitted_at=sent.isoformat(timespec="milliseconds"),
                error="",
            )
            try:
                name = self._wire.submit(batch.id, source)
                return self.put(batch, state=BatchState.SUBMITTED, name=name)
            except Unavailable as error:
                if not error.refused:
                    found = self.looked_up(batch)
                    if found.name:
                        return found
                batch = self.put(batch, state=BatchState.PLANNED, error=str(error))
                pause = error.retry_after or wait
                if self._pause.now() + pause > give_up:
                    self.put(batch, state=BatchState.FAILED, error=str(error))
                    raise McrError(
                        f"no batch was submitted: {error}{_asks(pause, wait)}; run the command "
                        "again to submit it"
                    ) from None
                self._pause.sleep(pause)
                wait = min(wait * 2, _BACKOFF_S[1])
            except McrError as error:
                # A refusal: there is no job. After a signal there may be one.
                if not isinstance(error, Stopped) or isinstance(error, UsedUp):
                    self.put(batch, state=BatchState.FAILED, error=str(error))
                raise

    def looked_up(self, batch: Batch) -> Batch:
        """Returns the batch with the name of its job, or as cancelled if there is no such job.

        The reply to the submission was lost, and the service's list may lag behind.
        """
        sent = datetime.datetime.fromisoformat(batch.submitted_at).timestamp()
        latest = min(sent, self._pause.now()) + LOOKUP_S  # a clock may have been set back
        while True:
            name = self._patiently(lambda: self._wire.find(batch.id, sent - _CLOCK_SKEW_S))
            if name:
                return self.put(batch, state=BatchState.SUBMITTED, name=name)
            if (left := latest - self._pause.now()) <= 0:
                lost = "the submission did not arrive"
                return self.put(batch, state=BatchState.CANCELLED, error=lost)
            self._pause.sleep(min(left, POLL_S[0]))

    def look(self, batch: Batch) -> Look:
        """Returns the state of the job of a batch."""
        return self._of_job(batch, lambda: self._wire.look(batch.name))

    def fetch(self, batch: Batch, look: Look) -> list[tuple[str, Any]]:
        """Returns the results of a job that has ended; see `BatchWire.fetch`."""
        return self._of_job(batch, lambda: self._wire.fetch(look))

    def since(self, batch: Batch) -> float:
        """Returns the seconds since the submission of a batch."""
        sent = datetime.datetime.fromisoformat(batch.submitted_at).timestamp()
        return max(0.0, self._pause.now() - sent)

    def _of_job(self, batch: Batch, call: Callable[[], _T]) -> _T:
        try:
            return self._patiently(call)
        except UnknownJob as error:
            path = shlex.quote(str(self._ledger.path))
            raise McrError(
                f"{error}; check key and address. If the job is gone, its rows are asked again "
                f"after: sqlite3 {path} \"UPDATE batches SET state = 'failed' WHERE id = "
                f"'{batch.id}'\""
            ) from None

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Repeats a call that may succeed later, for the patience of the run."""
        give_up, wait = self._pause.now() + self._patience, _BACKOFF_S[0]
        while True:
            try:
                return call()
            except Unavailable as error:
                pause = error.retry_after or wait
                if self._pause.now() + pause > give_up:
                    raise McrError(
                        f"no answer about a batch within config.judge.patience="
                        f"{self._patience:g} s ({error}{_asks(pause, wait)}); batches go on at the "
                        "service: run the command again to go on"
                    ) from None
                self._pause.sleep(pause)
                wait = min(wait * 2, _BACKOFF_S[1])


def _asks(pause: float, wait: float) -> str:
    """Returns words for the wait that a service asks for instead of our own."""
    return f", and asks to wait {pause:,.0f} s" if pause != wait else ""
