"""Rows of the ledger as Python values, and as the tuples that SQLite takes and gives."""

import dataclasses
import json
from typing import Any, NamedTuple

from mcr_jax.generate.api import Outcome, Usage


class Scope(NamedTuple):
    """The rows one run of a stage is about: a candidate model and, for verdicts, a judge."""

    stage: str
    model: str
    judge: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class RowKey:
    """Key of a row; artifacts are joined by it, never by position.

    Attributes:
      stage: "sample", "diagnosis", "reasons", "stitch" or "distortion".
      case: the case's fingerprint.
      model: the candidate's name in results.json.
      sample: index of the completion.
      judge: the judge's name; "" for completions.
      repeat: index of the judge's repetition.
    """

    stage: str
    case: str
    model: str
    sample: int
    judge: str = ""
    repeat: int = 0

    def judged(self, stage: str, judge: str) -> "RowKey":
        """The row of `judge`'s verdict in `stage` on this completion."""
        return dataclasses.replace(self, stage=stage, judge=judge)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One row.

    Attributes:
      row: what it answers.
      digest: of the request that the row's stage declared.
      attempt: counts the attempts at this row under this digest, from 1.
      outcome: how it ended.
      text: the reply.
      verdict: what the text was parsed into, or None.
      error: one line where the outcome is not OK.
      usage: tokens paid for this row; zero where the reply is another row's.
      model_version: what the service says it ran.
      seconds: wall time of the call.
      mean_logprob: as in `Reply`.
      shared: id of the attempt whose reply this is; None where the call was made for this row.
      question: `Request.question` where equal requests share a call, else "".
      reading: names the parser that made the verdict, with its settings.
      max_tokens: limit that the call had, which may be above the declared one; None if unknown.
      model_status: what the service says of the model's retirement.
      id: of the row in the file; 0 before it is written.
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
    id: int = dataclasses.field(default=0, compare=False)


def storable(text: str) -> str:
    """`text` with "?" for lone surrogates."""
    # SQLite stores UTF-8: a lone surrogate in hostile text must not cost the row.
    return text.encode("utf-8", "replace").decode("utf-8")


def json_text(verdict: Any) -> str | None:
    """A verdict as it is stored."""
    return None if verdict is None else json.dumps(verdict)


def place(row: RowKey) -> tuple[str, str, str, int, str, int]:
    """A row's key as the columns of both tables."""
    return (row.stage, row.case, row.model, row.sample, row.judge, row.repeat)


def told(key: RowKey) -> str:
    """A row's key for people."""
    line = f"{key.stage} of case {key.case[:12]}, model {key.model}, sample {key.sample}"
    line += f", judge {key.judge}" if key.judge else ""
    return line + (f", repeat {key.repeat}" if key.repeat else "")


def row_key(values: tuple[Any, ...]) -> RowKey:
    """The key in the columns that `place` gives."""
    stage, case, model, sample, judge, repeat = values
    return RowKey(stage=stage, case=case, model=model, sample=sample, judge=judge, repeat=repeat)


def values_of(attempt: Attempt) -> tuple[Any, ...]:
    """Returns the values of a row in the order of `_schema.insert`, without the id."""
    a, usage = attempt, attempt.usage
    return (
        *place(a.row),
        *(a.digest, a.attempt, str(a.outcome), storable(a.text)),
        *(json_text(a.verdict), storable(a.error), usage.prompt, usage.output, usage.cached),
        *(storable(a.model_version), a.seconds, a.mean_logprob),
        *(a.shared, a.question, a.reading, a.max_tokens, storable(a.model_status)),
    )


def attempt_of(values: tuple[Any, ...]) -> Attempt:
    """Reads a row of `_schema.columns`. Raises ValueError or RecursionError if it is damaged."""
    digest, attempt, outcome, text, verdict, error, *rest = values[7:]
    prompt, output, cached, model_version, seconds, mean_logprob, *rest = rest
    shared, question, reading, max_tokens, model_status = rest
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
    )
