"""Runs jobs through a generator and writes every answer into the ledger.

Rows that the ledger answers are not asked again: a second call costs nothing, and a killed run
resumes. Answers are written in batches shortly after they arrive. A failed request is not recorded,
except the last one of a row that is given up.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.generate import batch, remote
from mcr_jax.generate.api import Generator, Outcome, Remote, Reply, Request, Usage
from mcr_jax.generate.batch_wire import Batched
from mcr_jax.generate.budget import Payments
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.generate.open_batches import without_open
from mcr_jax.generate.questions import (
    Known,
    Question,
    Reader,
    Row,
    Settler,
    is_open,
    read,
    token_limit,
)
from mcr_jax.generate.recorder import Recorder

ATTEMPTS = 3
Progress = Callable[..., None]  # takes the number of newly settled rows, and of batches a note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request and the row of its first answer; answer i goes to the row `sample + i`."""

    row: RowKey
    request: Request

    def row_of(self, index: int) -> RowKey:
        """Returns the row of answer `index`."""
        return dataclasses.replace(self.row, sample=self.row.sample + index) if index else self.row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a run.

    Attributes:
      total: number of wanted rows.
      asked: number of rows that were open before the run.
      settled: number of these that are no longer open.
      errors: distinct last errors of the rows that are still open.
      in_batch: number of rows left to an open batch, which this run does not wait for.
    """

    total: int
    asked: int
    settled: int
    errors: tuple[str, ...] = ()
    in_batch: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Wanted and open rows of a scope: `declare` returns them, `answer` takes them.

    Attributes:
      scope: argument of `declare`.
      pending: questions of the open rows.
      known: newest attempt at every wanted row.
      reader: argument of `declare`.
      attempts: argument of `declare`.
    """

    scope: Scope
    pending: Sequence[Question]
    known: Known
    reader: Reader | None
    attempts: int

    @property
    def total(self) -> int:
        """Number of wanted rows."""
        return len(self.known)

    @property
    def asked(self) -> int:
        """Number of open rows."""
        return sum(len(question.rows) for question in self.pending)

    @property
    def held(self) -> int:
        """Number of rows that are not open."""
        return self.total - self.asked


def declare(
    scope: Scope,
    jobs: Iterable[Job],
    generator: Generator | Remote,
    ledger: Ledger,
    *,
    attempts: int = ATTEMPTS,
    reader: Reader | None = None,
) -> Work:
    """Declares in the ledger that `scope` wants exactly the rows of `jobs`; finds the open ones.

    With a reader, two kinds of rows need no request. Stored texts of another parser are parsed
    again. If the same service has answered an equal question, that answer is copied, for whichever
    candidate it was.

    Args:
      scope: stage, model and judge of every job's row.
      jobs: wanted jobs; rows and request keys must be unique.
      generator: source of the answers.
      ledger: may hold answers already.
      attempts: most answers requested for a row. With a reader each run counts from zero. Without
        one, malformed answers of earlier runs count, and a batch with missing replies is repeated.
      reader: parser of a scope of verdicts; None for samples, each of which is a separate draw.

    Raises:
      McrError: the ledger fails, or two jobs share a row or a key.
    """
    jobs = list(jobs)
    digests = want(scope, jobs, generator, ledger)
    known = newest = ledger.answers(scope, newest=True)
    if reader is not None and any(newest.values()):
        known = ledger.answers(scope, reader.version)
        requests = {job.row_of(i): job.request for job in jobs for i in job.request.wanted}
        if parsed := _parse_again(known, requests, reader):
            ledger.reread(parsed)
            newest = ledger.answers(scope, newest=True)
            known = ledger.answers(scope, reader.version)
    open_rows = [
        (Row(key=key, request=job.request, digest=digests[key]), index)
        for job in jobs
        for index in job.request.wanted
        if is_open(known[key := job.row_of(index)], reader, attempts)
    ]
    if reader is None or not isinstance(generator, Remote):
        pending = [Question(request=row.request, index=i, rows=[row]) for row, i in open_rows]
    else:
        questions = _questions(open_rows, newest, generator)
        pending = _copy_equal(questions, newest, ledger, reader)
    return Work(scope=scope, pending=pending, known=newest, reader=reader, attempts=attempts)


def still_open(work: Work, generator: Generator | Remote, ledger: Ledger) -> Work:
    """Returns `work` without the rows whose questions were answered for other rows meanwhile.

    Their answers are copied. To be called before `answer`, if other scopes were answered since
    `declare`.
    """
    if not isinstance(generator, Remote):
        return work
    return dataclasses.replace(work, pending=_copied(work.pending, work, ledger))


def submit(work: Work, generator: Generator | Remote, ledger: Ledger) -> None:
    """Submits the open rows to a service that takes batches; `answer` waits for the replies.

    Does nothing for other generators. Submit every scope before answering any: the service works on
    all of them together.

    Raises `batch.submit`'s errors.
    """
    if isinstance(generator, Batched) and work.pending:
        batch.submit(work.scope, work.pending, generator, ledger)


def status_of(generator: Generator | Remote) -> Callable[[], str] | None:
    """Returns the function of a generator's status for `console.track`, None without one."""
    if isinstance(generator, Batched):
        return None  # its notes come with the progress
    if isinstance(generator, Remote):
        return generator.pacer.status
    return getattr(generator, "status", None)


def want(
    scope: Scope, jobs: Sequence[Job], generator: Generator | Remote, ledger: Ledger
) -> dict[RowKey, str]:
    """Declares in the ledger that `scope` wants exactly the rows of `jobs`.

    Declare every scope before answering any. Otherwise a run that stops early leaves answers of
    two generators, or to two prompts, side by side.

    Returns:
      The request digest of each row.

    Raises:
      McrError: the ledger fails, or two jobs share a row or a key.
    """
    digests: dict[RowKey, str] = {}
    for job in jobs:
        rows = [job.row_of(index) for index in job.request.wanted]
        digests |= dict.fromkeys(rows, job.request.digest(generator.identity))
    count = sum(len(job.request.wanted) for job in jobs)
    if len(digests) != count or len({job.request.key for job in jobs}) != len(jobs):
        raise McrError("two jobs share a ledger row or a key: is a case in the data twice?")
    ledger.declare(scope, digests)
    return digests


def answer(
    work: Work,
    generator: Generator | Remote,
    ledger: Ledger,
    *,
    progress: Progress | None = None,
    payments: Payments | None = None,
) -> Summary:
    """Answers the open rows.

    Args:
      work: result of `declare` for the same generator and ledger.
      generator: gets all open requests at once; a remote one gets one call per question.
      ledger: takes every answer.
      progress: called with the number of newly settled rows once they are durable.
      payments: name the service in the rows and keep config.budget; for a remote generator.

    Raises:
      McrError: a row cannot be written, or an error of `remote.ask`.
      Stopped: see `remote.ask`.
    """
    progress = progress or (lambda settled, note="": None)
    asked, in_batch = work.asked, 0

    def settler_of(recorder: Any) -> Settler:
        most = generator.most_tokens if isinstance(generator, Remote) else 0
        paid = (payments.service, payments.tier) if payments else ()
        return Settler(work.known, work.reader, work.attempts, most, recorder, *paid)

    if isinstance(generator, Batched):
        errors = batch.ask(
            work.scope,
            work.pending,
            generator,
            ledger,
            settler_of,
            reader=work.reader,
            attempts=work.attempts,
            copied=lambda questions: _copied(questions, work, ledger),
            progress=progress,
        )
    else:
        with Recorder(ledger, progress) as recorder:
            settler = settler_of(recorder)
            if isinstance(generator, Remote):
                free, in_batch = _free(work, settler, ledger)
                remote.ask(free, generator, settler, payments)
            else:
                _ask_batch(work.pending, generator, settler, work.attempts)
        errors = settler.errors
    return Summary(
        total=work.total,
        asked=asked,
        settled=asked - len(errors),
        errors=tuple(dict.fromkeys(errors)),
        in_batch=in_batch,
    )


def run(
    scope: Scope,
    jobs: Iterable[Job],
    generator: Generator | Remote,
    ledger: Ledger,
    *,
    attempts: int = ATTEMPTS,
    reader: Reader | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Calls `declare`, then `answer`."""
    work = declare(scope, jobs, generator, ledger, attempts=attempts, reader=reader)
    return answer(work, generator, ledger, progress=progress)


def _parse_again(known: Known, requests: Mapping[RowKey, Request], reader: Reader) -> list[Attempt]:
    """Parses by `reader` the attempts whose texts another reader parsed."""
    return [
        read(attempt, requests[attempt.row], reader)
        for attempt in known.values()
        if attempt is not None
        and attempt.outcome in (Outcome.OK, Outcome.MALFORMED)
        and attempt.text
        and attempt.reading != reader.name
    ]


def _questions(
    open_rows: Iterable[tuple[Row, int]], known: Known, generator: Remote
) -> list[Question]:
    """Groups rows with equal questions, in the order of their first rows."""
    by_name: dict[str, Question] = {}
    for row, index in open_rows:
        name = row.request.question(generator.identity, (index, row.key.repeat))
        limit = token_limit(row.request, known[row.key], generator.most_tokens)
        question = by_name.setdefault(
            name, Question(request=row.request, index=index, rows=[], name=name)
        )
        question.rows = [*question.rows, row]
        if limit > question.request.max_tokens:
            question.request = dataclasses.replace(question.request, max_tokens=limit)
    return list(by_name.values())


def _copied(questions: Sequence[Question], work: Work, ledger: Ledger) -> list[Question]:
    """Copies answers that came meanwhile to equal questions; returns those still open."""
    if work.reader is None:
        return list(questions)
    return _copy_equal(questions, work.known, ledger, work.reader)


def _free(work: Work, settler: Settler, ledger: Ledger) -> tuple[list[Question], int]:
    """Returns the questions in no open batch, and the number of rows in one: those are paid."""
    rows = work.asked
    free, taken = without_open(work.pending, ledger)
    for question in taken:
        settler.give_up(question, "in an open batch")
    return free, rows - sum(len(question.rows) for question in free)


def _copy_equal(
    questions: Sequence[Question], known: Known, ledger: Ledger, reader: Reader
) -> list[Question]:
    """Copies stored answers to equal questions; returns the questions that are still open."""
    answered = ledger.equal((question.name for question in questions), reader.version)
    copies, pending = [], []
    for question in questions:
        source, still_open = answered.get(question.name), []
        for row in question.rows:
            if source is not None:
                copy = dataclasses.replace(
                    source,
                    row=row.key,
                    digest=row.digest,
                    attempt=before.attempt + 1 if (before := known[row.key]) else 1,
                    usage=Usage(),
                    shared=source.id if source.shared is None else source.shared,
                )
                copy = read(copy, row.request, reader)
                if copy.outcome is Outcome.OK:
                    copies.append([copy])
                    continue
            still_open.append(row)
        if still_open:
            pending.append(dataclasses.replace(question, rows=still_open))
    ledger.write_all(copies)
    return pending


def _ask_batch(
    questions: Sequence[Question], generator: Generator, settler: Settler, attempts: int
) -> None:
    """Sends all questions in one batch and retries the open ones, up to `attempts` batches."""
    for _ in range(attempts):
        batch = {(question.request.key, question.index): question for question in questions}
        questions, missing = [], set(batch)
        for reply, seconds in _replies(batch, generator) if batch else ():
            missing.discard((reply.key, reply.index))
            retry = settler.settle(batch[reply.key, reply.index], reply, seconds)
            if retry is not None:
                questions.append(retry)
        for place in missing:
            settler.give_up(batch[place], "no reply")
            questions.append(batch[place])


def _replies(
    batch: Mapping[tuple[str, int], Question], generator: Generator
) -> Iterator[tuple[Reply, float]]:
    """Yields replies with the seconds since the one before."""
    by_key: dict[str, list[int]] = {}
    for key, index in batch:
        by_key.setdefault(key, []).append(index)
    requests = [
        dataclasses.replace(batch[key, indices[0]].request, indices=tuple(indices))
        for key, indices in by_key.items()
    ]
    last = time.monotonic()
    for reply in generator.generate(requests):
        now = time.monotonic()
        yield reply, now - last
        last = now
