"""Contract between the driver of batches (`generate.batch`) and a service that takes them."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mcr_jax.errors import McrError, Stopped, one_line, printable
from mcr_jax.generate import connections
from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.api import Remote, Reply, Request
from mcr_jax.generate.pace import Pacer


class Entry(NamedTuple):
    """One request of a batch.

    Attributes:
      key: unique in all batches: it holds the nonce of the batch.
      request: the request.
      index: index of the answer within the request.
    """

    key: str
    request: Request
    index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """State of a job at the service.

    Attributes:
      state: POLLING while it runs, DONE, FAILED, CANCELLED or EXPIRED.
      done: number of requests that have ended; None if the service does not tell.
      error: one line where the job failed.
      full: True if it failed because too many tokens wait in batches.
      job: the job as the service describes it, for `BatchWire.fetch`.
    """

    state: BatchState
    done: int | None = None
    error: str = ""
    full: bool = False
    job: Any = None


class Unavailable(Exception):
    """Call that may succeed later. The message is one line.

    Attributes:
      refused: True if the service certainly did not accept the call.
      retry_after: seconds that the service asks to wait, or None.
    """

    def __init__(self, line: str, *, refused: bool = False, retry_after: float | None = None):
        super().__init__(line)
        self.refused, self.retry_after = refused, retry_after


def signal_in(error: BaseException | None) -> Stopped | None:
    """Returns the `Stopped` of a signal that a client has turned into its own error, or None."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


class UnknownJob(McrError):
    """The service knows no job of this name."""


class UsedUp(Stopped):
    """The service takes no job before a later time; no job came of the call."""


def refused(
    service: str, code: int, line: str, *, missing: str, wait: float | None
) -> McrError | Unavailable:
    """Returns the error of a `BatchWire` for a status other than 200.

    Args:
      service: its name.
      code: the status.
      line: what the service says.
      missing: name of the job or file that does not exist by the status; "" for any other status.
      wait: seconds that the service asks to wait, or None.
    """
    if missing:
        return UnknownJob(f"{service} knows no {printable(missing)} ({line})")
    if 400 <= code < 500 and code not in connections.TRANSIENT:
        return McrError(f"{service} refused a batch ({line})")
    return Unavailable(line, refused=code == 429, retry_after=wait)


def results(content: bytes, key: str) -> Iterator[tuple[str, Any]]:
    """Reads a JSONL file of results: the key of each line, "" if it is missing, and the line.

    A line that is no JSON object, such as a cut one, is skipped: its request counts as unanswered.
    """
    for line in content.split(b"\n"):
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(result, dict):
            name = result.get(key)
            yield name if isinstance(name, str) else "", result


def job_name(name: Any) -> str:
    """Returns the name that a service gives to a job or file. Raises ValueError for another form.

    It is printed, and a part of the address of later calls.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:/-]{1,300}", name, re.ASCII):
        raise ValueError(f"no name in {one_line(repr(name), 100)}")
    return name


class BatchWire(Protocol):
    """Batches of a service. Every method that calls the service may raise these:

    Raises:
      Unavailable: there is no answer, or the service asks to come later.
      McrError: the service refuses, and a retry would not help.

    Attributes:
      most_requests: largest number of requests in a batch.
      most_bytes: largest size of a batch.
    """

    most_requests: int
    most_bytes: int

    def line(self, entry: Entry) -> bytes:
        """Returns the request as a line of JSON, as it stands in an uploaded file."""
        ...

    def upload(self, nonce: str, entries: Sequence[Entry], lines: Sequence[bytes]) -> Any:
        """Uploads the requests where they go by file; returns the source for `submit`."""
        ...

    def submit(self, nonce: str, source: Any) -> str:
        """Creates the job, with the nonce as a part of it; returns its name."""
        ...

    def find(self, nonce: str, since: float) -> str:
        """Returns the name of the job with this nonce, created after `since`; "" if none has."""
        ...

    def look(self, name: str) -> Look:
        """Returns the state of the job. Raises UnknownJob, too."""
        ...

    def fetch(self, look: Look) -> list[tuple[str, Any]]:
        """Returns key and result of every request that has ended; "" where the key is missing."""
        ...

    def reply(self, result: Any, request: Request, index: int) -> Reply:
        """Turns a result of `fetch` into a reply."""
        ...

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        ...


@runtime_checkable
class HasBatches(Protocol):
    """A `Remote` whose service takes batches."""

    def batch_wire(self) -> BatchWire:
        """Returns the batches of the service."""
        ...


class Pause(NamedTuple):
    """Time of a run, replaced in tests.

    Attributes:
      sleep: waits for seconds.
      now: seconds since 1970.
    """

    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time


NOW = Pause()


class Batched:
    """A `Remote` whose open questions go to the service in batches.

    Attributes:
      remote: the service, for single calls.
      wire: its batches.
      patience: seconds to wait for a service that does not answer.
      identity, pacer, most_tokens: those of `remote`.
      pause: time.
      seen: ids of the batches that this object has submitted or attached to.
    """

    def __init__(self, remote: Remote, patience: float, pause: Pause = NOW):
        """Takes a service.

        Raises:
          McrError: the service takes no batches.
        """
        if not isinstance(remote, HasBatches):
            raise McrError(f"{remote.identity} takes no batches: leave batch=True out")
        self.remote, self.wire, self.patience = remote, remote.batch_wire(), patience
        self.identity, self.most_tokens = remote.identity, remote.most_tokens
        self.pacer: Pacer = remote.pacer
        self.pause = pause
        self.seen: set[str] = set()

    async def call(self, request: Request, index: int) -> Reply:
        """Makes one call outside the batches."""
        return await self.remote.call(request, index)

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        await self.remote.close()
