"""Runs jobs through a generator and writes every answer into the ledger.

What the ledger already answers is not asked again, so calling twice costs nothing and a killed run
goes on. Each answer is durable within moments of its arrival, together with those that came with
it. Calls that got no answer leave no row, except where a row is given up.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mcr_jax.errors import McrError
from mcr_jax.generate import remote
from mcr_jax.generate.api import Generator, Outcome, Remote, Reply, Request, Usage
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
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
Progress = Callable[[int], None]  # takes how many more rows are settled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request and the row of its answer 0; answer i goes to the row with `sample` i higher."""

    row: RowKey
    request: Request

    def row_of(self, index: int) -> RowKey:
        """The row of answer `index`."""
        return dataclasses.replace(self.row, sample=self.row.sample + index) if index else self.row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a run: of `total` rows `asked` were open, and `settled` of those are answered now.

    `errors` holds the distinct last errors of the rows left open.
    """

    total: int
    asked: int
    settled: int
    errors: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Rows of a scope, wanted and open; made by `declare`, answered by `answer`.

    Attributes:
      pending: the questions of the open rows.
      known: the newest attempt at every row that is wanted.
      reader: as given to `declare`.
      attempts: as given to `declare`.
    """

    pending: Sequence[Question]
    known: Known
    reader: Reader | None
    attempts: int

    @property
    def total(self) -> int:
        """Number of rows wanted."""
        return len(self.known)

    @property
    def asked(self) -> int:
        """Number of rows open."""
        return sum(len(question.rows) for question in self.pending)

    @property
    def held(self) -> int:
        """Number of rows answered before."""
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
    """States in the ledger that `jobs` are all that `scope` wants; finds what of them is open.

    With a reader, what the ledger can settle without a call is settled here: texts that another
    reader read are parsed again, and a row takes the answer that an equal question got before,
    for whatever model, from the same remote generator.

    Args:
      scope: stage, model and judge of every job's row.
      jobs: what is wanted; rows and request keys must be unique.
      generator: who will answer.
      ledger: may have answers already.
      attempts: answers that a row gets before it is left. With a reader they count per run.
        Without, malformed ones count over all runs, and a batch that lacks replies is repeated.
      reader: of a scope of verdicts; None for samples, each of which is a draw of its own.

    Raises:
      McrError: the ledger fails, or two jobs share a row or a key.
    """
    jobs = list(jobs)
    digests = want(scope, jobs, generator, ledger)
    known = newest = ledger.answers(scope, newest=True)
    if reader is not None and any(newest.values()):
        known = ledger.answers(scope, reader.version)
        requests = {job.row_of(i): job.request for job in jobs for i in job.request.wanted}
        if changed := _read_again(known, requests, reader):
            ledger.reread(changed)
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
    return Work(pending=pending, known=newest, reader=reader, attempts=attempts)


def want(
    scope: Scope, jobs: Sequence[Job], generator: Generator | Remote, ledger: Ledger
) -> dict[RowKey, str]:
    """States in the ledger that `jobs` are all that `scope` wants, and no more than that.

    Where several scopes are answered one after the other, it is said of all of them first: or a
    run that ends early would leave answers of two generators, or to two prompts, side by side.

    Returns:
      The digest that each row is to be answered under.

    Raises:
      McrError: the ledger fails, or two jobs share a row or a key.
    """
    _check_unique(jobs)
    digests: dict[RowKey, str] = {}
    for job in jobs:
        rows = [job.row_of(index) for index in job.request.wanted]
        digests |= dict.fromkeys(rows, job.request.digest(generator.identity))
    ledger.declare(scope, digests)
    return digests


def answer(
    work: Work,
    generator: Generator | Remote,
    ledger: Ledger,
    *,
    progress: Progress | None = None,
) -> Summary:
    """Answers what is open.

    Args:
      work: from `declare`, with the same generator and ledger.
      generator: gets all open requests at once, or a remote one a call for each question.
      ledger: where every answer is written.
      progress: takes the number of rows settled, once they are durable.

    Raises:
      McrError: a row cannot be written, or what `remote.ask` raises.
      Stopped: as `remote.ask`.
    """
    with Recorder(ledger, progress or (lambda settled: None)) as recorder:
        most = generator.most_tokens if isinstance(generator, Remote) else 0
        settler = Settler(work.known, work.reader, work.attempts, most, recorder)
        asked = work.asked
        if isinstance(generator, Remote):
            remote.ask(work.pending, generator, settler)
        else:
            _ask_batch(work.pending, generator, settler, work.attempts)
    errors = settler.errors
    return Summary(
        total=work.total,
        asked=asked,
        settled=asked - len(errors),
        errors=tuple(dict.fromkeys(errors)),
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
    """`declare` and `answer` in one."""
    work = declare(scope, jobs, generator, ledger, attempts=attempts, reader=reader)
    return answer(work, generator, ledger, progress=progress)


def _check_unique(jobs: Sequence[Job]) -> None:
    rows = [job.row_of(i) for job in jobs for i in job.request.wanted]
    if len(set(rows)) != len(rows) or len({job.request.key for job in jobs}) != len(jobs):
        raise McrError("two jobs share a ledger row or a key: is a case in the data twice?")


def _read_again(known: Known, requests: Mapping[RowKey, Request], reader: Reader) -> list[Attempt]:
    """The attempts whose texts were read under another name, parsed by `reader`."""
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
    """Rows that ask the same as one question, in the order of the first of each."""
    found: dict[str, Question] = {}
    for row, index in open_rows:
        name = row.request.question(generator.identity, (index, row.key.repeat))
        limit = token_limit(row.request, known[row.key], generator.most_tokens)
        question = found.setdefault(
            name, Question(request=row.request, index=index, rows=[], name=name)
        )
        question.rows = [*question.rows, row]
        if limit > question.request.max_tokens:
            question.request = dataclasses.replace(question.request, max_tokens=limit)
    return list(found.values())


def _copy_equal(
    questions: Sequence[Question], known: Known, ledger: Ledger, reader: Reader
) -> list[Question]:
    """Settles rows with answers that equal questions have; returns the questions still open."""
    answered = ledger.equal((question.name for question in questions), reader.version)
    copies, pending = [], []
    for question in questions:
        left = []
        for row in question.rows:
            source, before = answered.get(question.name), known[row.key]
            if source is None:
                left.append(row)
                continue
            copy = dataclasses.replace(
                source,
                row=row.key,
                digest=row.digest,
                attempt=before.attempt + 1 if before else 1,
                usage=Usage(),
                shared=source.id if source.shared is None else source.shared,
            )
            copy = read(copy, row.request, reader)
            if copy.outcome is Outcome.OK:
                copies.append([copy])
            else:
                left.append(row)
        if left:
            pending.append(dataclasses.replace(question, rows=left))
    ledger.write_all(copies)
    return pending


def _ask_batch(
    questions: Sequence[Question], generator: Generator, settler: Settler, attempts: int
) -> None:
    """Asks all at once, and what is left of them again, up to `attempts` times."""
    for _ in range(attempts):
        asked = {(question.request.key, question.index): question for question in questions}
        questions, missing = [], set(asked)
        for reply, seconds in _replies(asked, generator) if asked else ():
            missing.discard((reply.key, reply.index))
            again = settler.settle(asked[reply.key, reply.index], reply, seconds)
            if again is not None:
                questions.append(again)
        for place in missing:
            settler.give_up(asked[place], "no reply")
            questions.append(asked[place])


def _replies(
    asked: Mapping[tuple[str, int], Question], generator: Generator
) -> Iterator[tuple[Reply, float]]:
    wanted: dict[str, list[int]] = {}
    for key, index in asked:
        wanted.setdefault(key, []).append(index)
    requests = [
        dataclasses.replace(asked[key, indices[0]].request, indices=tuple(indices))
        for key, indices in wanted.items()
    ]
    last = time.monotonic()
    for reply in generator.generate(requests):
        now = time.monotonic()
        yield reply, now - last
        last = now
