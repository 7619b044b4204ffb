"""Ledger rows as Python values, and their conversion to and from SQLite tuples."""

import dataclasses
import enum
import json
from typing import Any, NamedTuple

from mcr_jax.generate.api import Outcome, Usage


class Scope(NamedTuple):
    """Rows of one run of a stage: those of a candidate model and, for verdicts, of a judge."""

    stage: str
    model: str
    judge: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class RowKey:
    """Key of a row. Artifacts are joined by this key, never by position.

    Attributes:
      stage: "sample", "diagnosis", "reasons", "stitch" or "distortion".
      case: fingerprint of the case.
      model: name of the candidate in results.json.
      sample: index of the completion.
      judge: name of the judge; "" for completions.
      repeat: index of the judge's repetition.
    """

    stage: str
    case: str
    model: str
    sample: int
    judge: str = ""
    repeat: int = 0

    def judged(self, stage: str, judge: str, repeat: int = 0) -> "RowKey":
        """Returns the row of the verdict that `judge` gives on this completion in `stage`."""
        return dataclasses.replace(self, stage=stage, judge=judge, repeat=repeat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a row.

    Attributes:
      row: key of the row.
      digest: request digest that the stage declared for the row.
      attempt: number of the attempt at this row under this digest, from 1.
      outcome: result of the attempt.
      text: the reply.
      verdict: parsed text, or None.
      error: one line where the outcome is not OK.
      usage: tokens paid for this row; zero where the reply was paid for by another row.
      model_version: version that the service reported.
      seconds: wall time of the call.
      mean_logprob: see `Reply`.
      shared: id of the attempt whose reply was copied; None where the call was made for this row.
      question: `Request.question` where equal requests share a call, else "".
      reading: name of the parser that made the verdict, with its settings.
      max_tokens: token limit of the call, at least the declared one; None if unknown.
      model_status: retirement notice of the service for this model.
      service: "KIND:MODEL" of the service that was asked, such as gemini:gemini-3.5-flash-lite; ""
        for a model of this machine, and in rows from before schema 4.
      tier: tier of the price: "batch", one that the service names, or "" for the standard one.
      batch: id of the batch that the reply came from, at half the price; "" for a direct call.
      id: primary key in the file; 0 before the row is written.
    """

    row: RowKey
    digest: str
    attempt: int
    outcome: Outcome
    text: str = ""
    verdict: Any = None
    error: str = ""
    usage: Usage = Usage()
    model_version: str = ""
    seconds: float = 0.0
    mean_logprob: float | None = None
    shared: int | None = None
    question: str = ""
    reading: str = ""
    max_tokens: int | None = None
    model_status: str = ""
    service: str = ""
    tier: str = ""
    batch: str = ""
    id: int = dataclasses.field(default=0, compare=False)


class BatchState(enum.StrEnum):
    """State of a batch. In the last four nothing more is expected of the service."""

    PLANNED = "planned"  # nothing was submitted yet
    SUBMITTING = "submitting"  # the service may have the job; its name is not known
    SUBMITTED = "submitted"
    POLLING = "polling"
    DOWNLOADING = "downloading"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        """True if replies may still come."""
        ended = (BatchState.DONE, BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED)
        return self not in ended


class Item(NamedTuple):
    """One call of a batch.

    Attributes:
      rows: keys and request digests of the rows that get its answer.
      question: `Attempt.question` of the call.
      index: index of the answer within the request.
      max_tokens: token limit of the call.
    """

    rows: tuple[tuple[RowKey, str], ...]
    question: str
    index: int
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch job at a service.

    Attributes:
      id: our nonce, which the service stores with the job and every request of it.
      service: identity of the generator.
      scope: scope of every row.
      items: its calls; the key of a request is `key_of(index)`.
      state: see `BatchState`.
      name: name of the job at the service; "" until the reply to the submission.
      submitted_at: time before the submission, ISO 8601 in UTC; "" before it.
      error: one line where the batch failed.
    """

    id: str
    service: str
    scope: Scope
    items: tuple[Item, ...]
    state: BatchState = BatchState.PLANNED
    name: str = ""
    submitted_at: str = ""
    error: str = ""

    def key_of(self, index: int) -> str:
        """Returns the key of request `index`, unlike that of any other batch."""
        return f"{self.id}-{index}"

    @property
    def rows(self) -> list[tuple[RowKey, str]]:
        """Keys and digests of all rows."""
        return [row for item in self.items for row in item.rows]


BATCH_COLUMNS = "id, service, stage, model, judge, rows, state, name, submitted_at, error"


def batch_values(batch: Batch) -> tuple[Any, ...]:
    """Returns the values of a batch in the order of `BATCH_COLUMNS`."""
    items = [
        [
            [[row.case, row.sample, row.repeat, digest] for row, digest in item.rows],
            *item[1:],
        ]
        for item in batch.items
    ]
    return (
        *(batch.id, batch.service, *batch.scope, json.dumps(items), str(batch.state)),
        *(storable(batch.name), batch.submitted_at, storable(batch.error)),
    )


def batch_of(values: tuple[Any, ...]) -> Batch:
    """Reads a row of `BATCH_COLUMNS`. A damaged row raises ValueError, TypeError or KeyError."""
    number, service, stage, model, judge, rows, state, name, submitted_at, error = values
    scope = Scope(stage, model, judge)
    items = []
    for keys, question, index, max_tokens in json.loads(rows):
        of_item = tuple(
            (row_key((stage, case, model, sample, judge, repeat)), digest)
            for case, sample, repeat, digest in keys
        )
        items.append(Item(of_item, question, index, max_tokens))
    return Batch(
        id=number,
        service=service,
        scope=scope,
        items=tuple(items),
        state=BatchState(state),
        name=name,
        submitted_at=submitted_at,
        error=error,
    )


def storable(text: str) -> str:
    """Replaces lone surrogates by "?": SQLite stores UTF-8, and hostile text must not fail."""
    return text.encode("utf-8", "replace").decode("utf-8")


def json_text(verdict: Any) -> str | None:
    """Returns the JSON that is stored for a verdict."""
    return None if verdict is None else json.dumps(verdict)


def place(row: RowKey) -> tuple[str, str, str, int, str, int]:
    """Returns the key columns of a row, the same in both tables."""
    return (row.stage, row.case, row.model, row.sample, row.judge, row.repeat)


def described(key: RowKey) -> str:
    """Describes a row for people."""
    line = f"{key.stage} of case {key.case[:12]}, model {key.model}, sample {key.sample}"
    line += f", judge {key.judge}" if key.judge else ""
    return line + (f", repeat {key.repeat}" if key.repeat else "")


def row_key(values: tuple[Any, ...]) -> RowKey:
    """Returns the key of the columns that `place` gives."""
    stage, case, model, sample, judge, repeat = values
    return RowKey(stage=stage, case=case, model=model, sample=sample, judge=judge, repeat=repeat)


def values_of(attempt: Attempt) -> tuple[Any, ...]:
    """Returns the values of an attempt in the order of `_schema.insert`, without the id."""
    a, usage = attempt, attempt.usage
    return (
        *place(a.row),
        *(a.digest, a.attempt, str(a.outcome), storable(a.text)),
        *(json_text(a.verdict), storable(a.error), usage.prompt, usage.output, usage.cached),
        *(storable(a.model_version), a.seconds, a.mean_logprob),
        *(a.shared, a.question, a.reading, a.max_tokens, storable(a.model_status)),
        *(a.service, a.tier, a.batch),
    )


def attempt_of(values: tuple[Any, ...]) -> Attempt:
    """Reads a row of `_schema.columns`. A damaged row raises ValueError or RecursionError."""
    digest, attempt, outcome, text, verdict, error, *rest = values[7:]
    prompt, output, cached, model_version, seconds, mean_logprob, *rest = rest
    shared, question, reading, max_tokens, model_status, service, tier, batch = rest
    return Attempt(
        id=values[0],
        row=row_key(values[1:7]),
        digest=digest,
        attempt=attempt,
        outcome=Outcome(outcome),
        text=text,
        verdict=None if verdict is None else json.loads(verdict),
        error=error,
        usage=Usage(prompt=prompt, output=output, cached=cached),
        model_version=model_version,
        seconds=seconds,
        mean_logprob=mean_logprob,
        shared=shared,
        question=question,
        reading=reading,
        max_tokens=max_tokens,
        model_status=model_status,
        service=service,
        tier=tier,
        batch=batch,
    )


def damaged(attempt: Attempt, error: str) -> str:
    """Returns one line about a verdict of a wrong form, with the command that repairs it."""
    command = "stitch" if attempt.row.stage == "distortion" else "judge"
    return (
        f"ledger.sqlite: row {attempt.id} is damaged ({described(attempt.row)}): the verdict "
        f"{error}; `mcr {command}` reads its reply again after: sqlite3 ledger.sqlite "
        f"\"UPDATE attempts SET reading = '' WHERE id = {attempt.id}\""
    )
