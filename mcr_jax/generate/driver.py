"""Runs jobs through a generator and writes every attempt into the ledger.

What the ledger already answers is not asked again, so calling twice costs nothing and a killed run
goes on. Each reply is written the moment it arrives.
"""

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Generator, Outcome, Reply, Request
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope

Parse = Callable[[Request, str], Any]  # raises ValueError when the text is not of the asked form
Progress = Callable[[int], None]  # told how many more rows are settled
Known = Mapping[RowKey, Attempt | None]  # the newest attempt at every wanted row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request and the row of its answer 0; answer i goes to the row with `sample` i higher."""

    row: RowKey
    request: Request

    def row_of(self, index: int) -> RowKey:
        """The row of answer `index`."""
        return dataclasses.replace(self.row, sample=self.row.sample + index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did: `asked` of `total` rows were open, `settled` of those are answered now.

    `errors` holds the distinct last errors of the rows left open.
    """

    total: int
    asked: int
    settled: int
    errors: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """At most `attempts` tries per row, `backoff` seconds before the second, doubling, jittered.

    A wait the service names replaces the doubling one, up to `longest` seconds.
    """

    attempts: int = 3
    backoff: float = 1.0
    longest: float = 60.0

    def pause(self, tries: int, asked: float | None) -> float:
        """Seconds to wait after `tries` tries, when the service asked for `asked` seconds."""
        if asked is not None:
            return min(asked, self.longest)
        return min(self.backoff * 2 ** (tries - 1), self.longest) * random.uniform(0.5, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a scope wants and what of it is open; made by `declare`, done by `answer`.

    A row is open when nothing settled it: no attempt, a failed infrastructure, or malformed replies
    with tries left (so that a kill between two tries changes nothing).

    Attributes:
      pending: the jobs with open rows, asking for these alone.
      known: the newest attempt at every row that is wanted.
      retry: tries and waits for INFRA_ERROR and MALFORMED.
    """

    pending: Sequence[Job]
    known: Known
    retry: Retry

    @property
    def total(self) -> int:
        """How many rows are wanted."""
        return len(self.known)

    @property
    def asked(self) -> int:
        """How many of them are open."""
        return sum(len(job.request.wanted) for job in self.pending)

    @property
    def held(self) -> int:
        """How many of them are not."""
        return self.total - self.asked


def _is_open(attempt: Attempt | None, attempts: int) -> bool:
    if attempt is None or not attempt.outcome.settled:
        return True
    return attempt.outcome is Outcome.MALFORMED and attempt.attempt < attempts


def declare(
    scope: Scope,
    jobs: Iterable[Job],
    generator: Generator,
    ledger: Ledger,
    retry: Retry | None = None,
) -> Work:
    """States in the ledger that `jobs` are all that `scope` wants; finds what of them is open.

    Args:
      scope: stage, model and judge of every job's row.
      jobs: what is wanted; rows and request keys must be unique.
      generator: who will answer.
      ledger: may have answers already.
      retry: tries and waits for INFRA_ERROR and MALFORMED.

    Raises:
      McrError: the ledger fails, or two jobs share a row or a key.
    """
    jobs, retry = list(jobs), retry or Retry()
    _check_unique(jobs)
    digests = {}
    for job in jobs:
        digest = job.request.digest(generator.identity)
        digests |= dict.fromkeys(map(job.row_of, job.request.wanted), digest)
    ledger.declare(scope, digests)
    known, pending = ledger.answers(scope), []
    for job in jobs:
        wanted = job.request.wanted
        missing = tuple(i for i in wanted if _is_open(known[job.row_of(i)], retry.attempts))
        if missing:
            request = dataclasses.replace(job.request, indices=missing)
            pending.append(dataclasses.replace(job, request=request))
    return Work(pending=pending, known=known, retry=retry)


def answer(
    work: Work,
    generator: Generator,
    ledger: Ledger,
    *,
    parse: Parse | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Answers what is open.

    Args:
      work: from `declare`, with the same generator and ledger.
      generator: called with all open requests at once if its `concurrency` is 1, else with one
        request per thread.
      ledger: where every attempt is written, as it arrives.
      parse: turns an OK reply's text into the row's verdict; ValueError makes it MALFORMED.
      progress: told the number of rows settled, as they are.

    Raises:
      McrError: a row cannot be written.
    """
    worker = _Worker(
        generator, ledger, work.known, parse, work.retry, progress or (lambda settled: None)
    )
    if generator.concurrency == 1:
        errors = worker.answer(work.pending) if work.pending else []
    else:
        errors = _answer_in_threads(worker, work.pending, generator.concurrency)
    return Summary(
        total=work.total,
        asked=work.asked,
        settled=work.asked - len(errors),
        errors=tuple(dict.fromkeys(errors)),
    )


def run(
    scope: Scope,
    jobs: Iterable[Job],
    generator: Generator,
    ledger: Ledger,
    *,
    parse: Parse | None = None,
    retry: Retry | None = None,
    progress: Progress | None = None,
) -> Summary:
    """`declare` and `answer` in one."""
    work = declare(scope, jobs, generator, ledger, retry)
    return answer(work, generator, ledger, parse=parse, progress=progress)


def _check_unique(jobs: Sequence[Job]) -> None:
    rows = [job.row_of(i) for job in jobs for i in job.request.wanted]
    if len(set(rows)) != len(rows) or len({job.request.key for job in jobs}) != len(jobs):
        raise McrError("two jobs share a ledger row or a key: is a case in the data twice?")


def _answer_in_threads(worker: "_Worker", pending: Sequence[Job], threads: int) -> list[str]:
    errors = []
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(worker.answer, [job]) for job in pending]
        try:
            for future in as_completed(futures):
                errors += future.result()
        finally:  # whatever ended the run early, no further paid call may go out
            worker.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return errors


@dataclasses.dataclass(frozen=True)
class _Worker:
    """Answers jobs with retries; holds only what threads may share."""

    generator: Generator
    ledger: Ledger
    known: Known
    parse: Parse | None
    retry: Retry
    progress: Progress
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def answer(self, jobs: Sequence[Job]) -> list[str]:
        """Tries until all rows of `jobs` are settled; returns the errors of those that are not."""
        open_rows = {(job.request.key, i): job for job in jobs for i in job.request.wanted}
        latest: dict[tuple[str, int], Attempt] = {}
        for tries in range(1, self.retry.attempts + 1):
            wait = None
            for reply, seconds in self._replies(open_rows):
                place = (reply.key, reply.index)
                job = open_rows[place]
                latest[place] = attempt = self._record(job, reply, seconds, latest.get(place))
                if not _is_open(attempt, self.retry.attempts):
                    del open_rows[place]
                    self.progress(1)
                elif reply.retry_after is not None:
                    wait = max(wait or 0.0, reply.retry_after)
            if not open_rows:
                return []
            if tries < self.retry.attempts and self.stop.wait(self.retry.pause(tries, wait)):
                break
        return [latest[p].error if p in latest else "no reply" for p in open_rows]

    def _replies(self, open_rows: Mapping[tuple[str, int], Job]) -> Iterator[tuple[Reply, float]]:
        wanted: dict[str, list[int]] = {}
        for key, index in open_rows:
            wanted.setdefault(key, []).append(index)
        requests = [
            dataclasses.replace(open_rows[key, indices[0]].request, indices=tuple(indices))
            for key, indices in wanted.items()
        ]
        last = time.monotonic()
        for reply in self.generator.generate(requests):
            now = time.monotonic()
            yield reply, now - last
            last = now

    def _record(self, job: Job, reply: Reply, seconds: float, previous: Attempt | None) -> Attempt:
        row, digest = job.row_of(reply.index), job.request.digest(self.generator.identity)
        previous = previous or self.known[row]
        outcome, error, verdict = reply.outcome, reply.error, None
        if self.parse is not None and outcome is Outcome.OK:
            try:
                verdict = self.parse(job.request, reply.text)
            except ValueError as problem:
                outcome, error = Outcome.MALFORMED, str(problem)
        attempt = Attempt(
            row=row,
            digest=digest,
            attempt=previous.attempt + 1 if previous else 1,
            outcome=outcome,
            text=reply.text,
            verdict=verdict,
            error=error,
            usage=reply.usage,
            mean_logprob=reply.mean_logprob,
            model_version=reply.model_version,
            seconds=seconds,
        )
        self.ledger.write(attempt)
        return attempt
