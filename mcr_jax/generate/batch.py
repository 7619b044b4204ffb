"""Batches of a service: half the price, and hours until the replies come.

Each batch is a row of the ledger before it is submitted. The service stores our nonce with the job,
so a run that was killed finds its job by the nonce if it did not get the name. Replies are joined
by a key that holds the nonce, never by their order, and are written together with the end of the
batch: nothing is submitted twice, recorded twice or lost. What a batch leaves open goes into the
next one; fewer than `FEWEST` requests are not worth hours and are asked directly.
"""

import contextlib
import dataclasses
import datetime
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mcr_jax import console
from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate import batch_jobs, remote
from mcr_jax.generate._rows import Batch, BatchState, Item
from mcr_jax.generate.api import Outcome, Request, Usage
from mcr_jax.generate.batch_wire import Batched, Entry, Look
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.generate.open_batches import without_open
from mcr_jax.generate.questions import Question, Reader, Row, Settler
from mcr_jax.generate.recorder import Recorder

FEWEST = 10  # requests in a batch; fewer are asked directly

Progress = Callable[..., None]  # takes the number of newly settled rows, and a note


def submit(scope: Scope, pending: Sequence[Question], generator: Batched, ledger: Ledger) -> None:
    """Submits the questions that are in no open batch, without waiting for replies.

    Raises:
      McrError: the service refuses or does not answer, or the ledger fails.
      Stopped: SIGTERM or Ctrl-C came.
    """
    run = _Run(scope, pending, generator, ledger)
    with run.ending():
        run.attach()
        run.submit()


def ask(
    scope: Scope,
    pending: Sequence[Question],
    generator: Batched,
    ledger: Ledger,
    settler_of: Callable[[Any], Settler],
    *,
    reader: Reader | None,
    attempts: int,
    copied: Callable[[Sequence[Question]], list[Question]],
    progress: Progress,
) -> list[str]:
    """Answers questions by batches: submits, waits, and asks again what failed.

    Args:
      scope: of all rows.
      pending: questions of the open rows.
      generator: the service.
      ledger: holds the batches, and takes every answer.
      settler_of: returns the settler that puts its rows into the recorder given.
      reader: parser of a scope of verdicts, or None.
      attempts: most answers per row in this run.
      copied: copies stored answers to equal questions; returns those that are still open.
      progress: called with the number of newly settled rows, and with a note.

    Returns:
      Last error of every row that is still open.

    Raises:
      McrError: the service refuses, ends a batch as failed, or does not answer.
      Stopped: SIGTERM or Ctrl-C came, or the service names a later time; batches go on there.
    """
    run, sink = _Run(scope, pending, generator, ledger), _Sink()
    settler = settler_of(sink)
    with run.ending():
        run.attach()
        while True:
            if few := run.submit():
                console.say(f"  {len(few)} requests are too few for a batch: asked directly")
                with Recorder(ledger, progress) as sink.recorder:
                    remote.ask(few, generator.remote, settler)
                sink.recorder = None
            if run.open:
                for batch, look in run.ended(progress):
                    run.settle(batch, look, settler, sink, reader, attempts)
                    progress(sink.settled)
                    sink.settled = 0
            elif run.elsewhere:
                rows = sum(len(question.rows) for question in run.elsewhere)
                left = copied(run.elsewhere)
                progress(rows - sum(len(question.rows) for question in left))
                run.elsewhere, (run.waiting, others) = [], without_open(left, ledger)
                for question in others:
                    settler.give_up(question, "in the open batch of another model")
            if not (run.open or run.waiting or run.elsewhere):
                return settler.errors


class _Sink:
    """Recorder of a settler: collects the rows of a batch, passes on those of direct calls."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.groups: list[Sequence[Attempt]] = []
        self.settled = 0

    def put(self, rows: Sequence[Attempt], settled: int) -> None:
        if self.recorder is not None:
            self.recorder.put(rows, settled)
        else:
            self.groups.append(rows)
            self.settled += settled


class _Run:
    """Batches of one scope.

    Attributes:
      waiting: questions that are in no batch yet.
      elsewhere: questions that wait for the answer of an open batch to an equal one.
      open: batches whose replies have not been fetched, by id.
    """

    def __init__(
        self,
        scope: Scope,
        pending: Sequence[Question],
        generator: Batched,
        ledger: Ledger,
    ):
        self._scope, self._generator, self._wire = scope, generator, generator.wire
        self._ledger, self._pause = ledger, generator.pause
        self._jobs = batch_jobs.Jobs(generator, ledger)
        self._wait_s = batch_jobs.POLL_S[0]
        # Copies: `attach` takes rows out of them, and the caller passes `pending` again.
        self.waiting, self.elsewhere = [dataclasses.replace(each) for each in pending], []
        self.open: dict[str, Batch] = {}
        # Question of each item by batch; None where no row of the item is open any more.
        self._questions: dict[str, list[Question | None]] = {}

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Closes the connections; names the batches that go on if a signal ends the block."""
        try:
            yield
        except (Stopped, KeyboardInterrupt) as stop:
            if not (names := self._names()):
                raise
            raise Stopped(
                f"{str(stop) or 'interrupted'}; at the service {', '.join(names)} "
                f"{'goes' if len(names) == 1 else 'go'} on, and the same command re-attaches"
            ) from None
        finally:
            self._wire.close()

    def _names(self, service: str = "") -> list[str]:
        """Returns the jobs of the ledger that go on, at one service or at all."""
        return [
            batch.name or batch.id
            for batch in self._ledger.batches()
            if service in ("", batch.service) and batch.state is not BatchState.PLANNED
        ]

    def attach(self) -> None:
        """Takes over the open batches of earlier runs, and looks up those without a name."""
        rows = {(r.key, r.digest): r for question in self.waiting for r in question.rows}
        for batch in self._ledger.batches():
            if batch.scope != self._scope or batch.service != self._generator.identity:
                continue
            if batch.state is BatchState.PLANNED:
                self._jobs.put(
                    batch, state=BatchState.CANCELLED, error="stopped before its submission"
                )
                continue
            if not batch.name:
                batch = self._jobs.looked_up(batch)
                if not batch.name:
                    continue
            if batch.id not in self._generator.seen:
                console.say(f"  batch {batch.name}, submitted {batch.submitted_at}, goes on")
            self._opened(batch, [_question(item, rows) for item in batch.items])
        for question in self.waiting:
            question.rows = [r for r in question.rows if (r.key, r.digest) in rows]
        self.waiting = [question for question in self.waiting if question.rows]

    def _opened(self, batch: Batch, questions: list[Question | None]) -> None:
        self.open[batch.id], self._questions[batch.id] = batch, questions
        self._generator.seen.add(batch.id)
        self._wait_s = batch_jobs.POLL_S[0]

    def submit(self) -> list[Question]:
        """Submits what is waiting and in no open batch; returns it if it is too little for one."""
        (free, taken), self.waiting = without_open(self.waiting, self._ledger), []
        self.elsewhere += taken
        if len(free) < FEWEST:
            return free
        for nonce, questions, lines in self._parts(free):
            self._submit(nonce, questions, lines)
        return []

    def _parts(
        self, questions: Sequence[Question]
    ) -> Iterator[tuple[str, list[Question], list[bytes]]]:
        """Splits questions by the limits of the service; yields nonce, questions and their JSON."""
        nonce, part, lines, size = uuid.uuid4().hex, [], [], 0
        for question in questions:
            line = self._wire.line(_entry(nonce, len(part), question))
            full = len(part) == self._wire.most_requests
            if part and (full or size + len(line) > self._wire.most_bytes):
                yield nonce, part, lines
                nonce, part, lines, size = uuid.uuid4().hex, [], [], 0
                line = self._wire.line(_entry(nonce, 0, question))
            part.append(question)
            lines.append(line)
            size += len(line) + 1
        yield nonce, part, lines

    def _submit(self, nonce: str, questions: list[Question], lines: list[bytes]) -> None:
        items = tuple(
            Item(tuple((r.key, r.digest) for r in q.rows), q.name, q.index, q.request.max_tokens)
            for q in questions
        )
        batch = Batch(id=nonce, service=self._generator.identity, scope=self._scope, items=items)
        entries = [_entry(nonce, i, question) for i, question in enumerate(questions)]
        batch = self._jobs.submit(batch, entries, lines)
        console.say(f"  batch {batch.name}: {len(items)} requests submitted ({_words(batch)})")
        self._opened(batch, list(questions))

    def ended(self, progress: Progress) -> list[tuple[Batch, Look]]:
        """Waits until a job has ended; returns those that have."""
        while True:
            looks = {id: self._look(batch) for id, batch in list(self.open.items())}
            running = [id for id, look in looks.items() if look.state is BatchState.POLLING]
            ended = [(self.open[id], look) for id, look in looks.items() if id not in running]
            if not any(any(self._questions[id]) for id in running):
                for id in running:  # nobody waits for them; a later run fetches them
                    del self.open[id]
            if ended or not self.open:
                return ended
            done = sum(look.done or 0 for look in looks.values())
            total = sum(len(batch.items) for batch in self.open.values())
            again = datetime.datetime.fromtimestamp(self._pause.now() + self._wait_s)
            names = ", ".join(batch.name for batch in self.open.values())
            progress(0, f"{names}: {done} of {total} requests done; next look at {again:%H:%M:%S}")
            self._pause.sleep(self._wait_s)
            self._wait_s = min(self._wait_s * batch_jobs.POLL_GROWTH, batch_jobs.POLL_S[1])

    def _look(self, batch: Batch) -> Look:
        if batch.state is BatchState.SUBMITTED:
            self.open[batch.id] = self._jobs.put(batch, state=BatchState.POLLING)
        return self._jobs.look(batch)

    def settle(
        self,
        batch: Batch,
        look: Look,
        settler: Settler,
        sink: _Sink,
        reader: Reader | None,
        attempts: int,
    ) -> None:
        """Records the replies of a job that has ended, all of them or none.

        Raises:
          McrError: the job failed or was cancelled; the replies that came are recorded.
        """
        batch = self._jobs.put(batch, state=BatchState.DOWNLOADING)
        results = self._jobs.fetch(batch, look)
        by_key: dict[str, list[Any]] = {}
        for key, result in results:
            by_key.setdefault(key, []).append(result)
        seconds = self._jobs.since(batch)
        for index, item in enumerate(batch.items):
            question = self._questions[batch.id][index]
            found = by_key.pop(batch.key_of(index), [])
            if all(result == found[0] for result in found):
                found = found[:1]  # the same result twice is one
            if question is None:
                if len(found) == 1:
                    sink.groups += self._unread(batch.id, item, found[0], settler, reader, seconds)
                continue
            reply = None
            if len(found) == 1:
                reply = self._wire.reply(found[0], question.request, question.index)
            if reply is not None and reply.outcome is not Outcome.INFRA_ERROR:
                retry = settler.settle(question, reply, seconds, batch.id)
                self.waiting += [retry] if retry is not None else []
                continue
            question.failures += 1
            if question.failures < attempts:
                self.waiting.append(question)
            elif reply is not None:
                settler.settle(question, reply, seconds, batch.id)
            else:
                settler.give_up(question, look.error or "no reply in the batch")
        groups, sink.groups = sink.groups, []
        self._ledger.write_all(
            groups, batch=dataclasses.replace(batch, state=look.state, error=look.error)
        )
        del self.open[batch.id], self._questions[batch.id]
        if by_key:
            strays = sum(map(len, by_key.values()))
            console.say(f"  batch {batch.name}: {strays} replies without a key of ours are dropped")
        if look.full and self._names(self._generator.identity):
            raise Stopped(
                f"batch {batch.name} of {_words(batch)} was not taken: {look.error}; its rows are "
                "submitted anew if you run the command again once another batch has ended"
            )
        if look.state in (BatchState.FAILED, BatchState.CANCELLED):
            raise McrError(
                f"batch {batch.name} of {_words(batch)} {look.state} at the service: "
                f"{look.error or 'no reason given'}; its open rows are submitted anew if you run "
                "the command again"
            )

    def _unread(
        self,
        batch: str,
        item: Item,
        result: Any,
        settler: Settler,
        reader: Reader | None,
        seconds: float,
    ) -> list[list[Attempt]]:
        """Returns a group of attempts with a reply to rows that are no longer open: it is paid for.

        No group where the request failed. The request is unknown here, so a verdict is parsed only
        when the rows are wanted again.
        """
        (row, _), schema = item.rows[0], None if reader is None else {}
        request = Request(key=row.case, messages=(), schema=schema)
        reply = self._wire.reply(result, request, item.index)
        outcome, error = reply.outcome, reply.error
        if outcome is Outcome.INFRA_ERROR:
            return []
        if reader is not None and outcome is Outcome.OK:
            outcome, error = Outcome.MALFORMED, "not parsed yet"
        first = Attempt(
            row=row,
            digest=item.rows[0][1],
            attempt=1,
            outcome=outcome,
            text=reply.text,
            error=error,
            usage=reply.usage,
            model_version=reply.model_version,
            model_status=reply.model_status,
            seconds=seconds,
            mean_logprob=reply.mean_logprob,
            question=item.question,
            max_tokens=item.max_tokens,
            **settler.paid(reply, batch),
        )
        group = [
            dataclasses.replace(
                first,
                row=row,
                digest=digest,
                attempt=self._ledger.tried(row, digest) + 1,
                **({"usage": Usage()} if number else {}),
            )
            for number, (row, digest) in enumerate(item.rows)
        ]
        return [group]


def _entry(nonce: str, index: int, question: Question) -> Entry:
    return Entry(f"{nonce}-{index}", question.request, question.index)


def _question(item: Item, rows: dict[tuple[RowKey, str], Row]) -> Question | None:
    """Removes the rows of `item` from `rows`; returns their question, None if there are none."""
    found = [rows.pop(key) for key in item.rows if key in rows]
    if not found:
        return None
    request = dataclasses.replace(found[0].request, max_tokens=item.max_tokens)
    return Question(request=request, index=item.index, rows=found, name=item.question)


def _words(batch: Batch) -> str:
    return f"{batch.scope.stage} of {batch.scope.model}"
