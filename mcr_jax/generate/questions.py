"""Questions for a generator, the ledger rows that share their answers, and parsing of replies."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.generate.prices import BATCH
from mcr_jax.generate.recorder import Recorder

Parse = Callable[[Request, str], Any]  # raises ValueError if the text has a wrong form
Known = Mapping[RowKey, Attempt | None]  # wanted row -> an attempt, None without one

_RETRIED = (Outcome.MALFORMED, Outcome.BLOCKED, Outcome.TRUNCATED)  # for rows of verdicts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Parser of a scope of verdicts. Their rows share equal questions and stay open until OK.

    Attributes:
      parse: turns the text of an OK reply into a verdict; ValueError makes the row MALFORMED.
      name: name of the parser with its version and settings. Stored texts that another parser read
        are parsed again without a call.
      version: the only model_version that counts; "" for any. Rows with another stay open.
    """

    parse: Parse
    name: str
    version: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Row with its request and the declared digest."""

    key: RowKey
    request: Request
    digest: str


@dataclasses.dataclass(kw_only=True)
class Question:
    """Content of one call.

    Attributes:
      request: request to send; its token limit may be above that of the rows' requests.
      index: index of the answer within the request.
      rows: rows that get the answer; the call is made for the first.
      name: `Request.question` where rows may share the answer, else "".
      tries: number of answers in this run, none of which settled all rows.
      failures: number of failed calls in this run that may be due to the request.
    """

    request: Request
    index: int
    rows: Sequence[Row]
    name: str = ""
    tries: int = 0
    failures: int = 0


def is_open(attempt: Attempt | None, reader: Reader | None, attempts: int) -> bool:
    """Returns whether the row of `attempt` needs a call.

    With a reader, a row is open until it has a verdict of the version that counts, or its prompt is
    too long. Without a reader, a row is open until an attempt settles it; a malformed one settles
    it after `attempts` over all runs, so that a kill between two tries changes nothing.
    """
    if attempt is None:
        return True
    if reader is None:
        retried = attempt.outcome is Outcome.MALFORMED and attempt.attempt < attempts
        return retried or not attempt.outcome.settled
    if attempt.outcome is Outcome.OK:
        return reader.version not in ("", attempt.model_version)
    return attempt.outcome is not Outcome.PROMPT_TOO_LONG


def read(attempt: Attempt, request: Request, reader: Reader) -> Attempt:
    """Parses the text of `attempt` by `reader`: the result is OK with a verdict, or MALFORMED."""
    return dataclasses.replace(attempt, **_reading(attempt.text, request, reader))


def _reading(text: str, request: Request, reader: Reader) -> dict[str, Any]:
    """Returns the fields of an attempt that parsing its text decides."""
    try:
        verdict, outcome, error = reader.parse(request, text), Outcome.OK, ""
    except ValueError as problem:
        verdict, outcome, error = None, Outcome.MALFORMED, str(problem)
    return {"verdict": verdict, "outcome": outcome, "error": error, "reading": reader.name}


def token_limit(request: Request, attempt: Attempt | None, most: int) -> int:
    """Returns the token limit of the next call: the last one, doubled after a truncated reply."""
    limit = (attempt and attempt.max_tokens) or request.max_tokens
    if attempt is not None and attempt.outcome is Outcome.TRUNCATED:
        limit *= 2
    return max(request.max_tokens, min(limit, most))


class Settler:
    """Turns replies into rows of the ledger and selects the questions to retry.

    Args:
      known: newest attempt at every wanted row.
      reader: parser of a scope of verdicts, or None.
      attempts: answers per row in a run before the row stays as it is.
      most_tokens: largest token limit of a retry after a truncated reply.
      recorder: writes the rows.
      service: "KIND:MODEL" that is paid, for the rows; "" for a model of this machine.
      tier: of direct calls whose reply names none, for the rows; "batch" is the standard one.
    """

    def __init__(
        self,
        known: Known,
        reader: Reader | None,
        attempts: int,
        most_tokens: int,
        recorder: Recorder,
        service: str = "",
        tier: str = "",
    ):
        self._latest, self._reader, self._attempts = dict(known), reader, attempts
        self._most_tokens, self._recorder = most_tokens, recorder
        self._service, self._tier = service, "" if tier == BATCH else tier
        self._errors: dict[RowKey, str] = {}

    def settle(
        self, question: Question, reply: Reply, seconds: float, batch: str = ""
    ) -> Question | None:
        """Records a reply. Returns the question to retry in this run, perhaps with fewer rows.

        Args:
          question: the question.
          reply: its reply.
          seconds: wall time of the call.
          batch: id of the batch that the reply came from, "" for a direct call.

        Raises:
          McrError: rows cannot be written.
        """
        question.tries += 1
        attempts, still_open = [], []
        for row in question.rows:
            attempt = self._attempt(row, question, reply, seconds, batch)
            attempts.append(dataclasses.replace(attempt, usage=Usage()) if attempts else attempt)
            self._latest[row.key] = attempt
            self._errors.pop(row.key, None)
            if is_open(attempt, self._reader, self._attempts):
                still_open.append(row)
                version = self._reader.version if self._reader else ""
                other = f"answered by model version {attempt.model_version}, not {version}"
                self._errors[row.key] = attempt.error or other
        self._recorder.put(attempts, len(attempts) - len(still_open))
        if self._reader is not None:
            still_open = [row for row in still_open if self._latest[row.key].outcome in _RETRIED]
        if not still_open or question.tries >= self._attempts:
            return None
        question.rows = still_open
        if self._reader is not None:
            limits = (
                token_limit(row.request, self._latest[row.key], self._most_tokens)
                for row in still_open
            )
            question.request = dataclasses.replace(question.request, max_tokens=max(limits))
        return question

    def give_up(self, question: Question, error: str) -> None:
        """Leaves rows open in this run without recording an attempt."""
        self._errors |= {row.key: error for row in question.rows}

    def paid(self, reply: Reply, batch: str) -> dict[str, str]:
        """Returns the fields of an attempt that decide its price."""
        tier = BATCH if batch else self._tier if reply.tier is None else reply.tier
        return {"service": self._service, "tier": tier, "batch": batch}

    @property
    def errors(self) -> list[str]:
        """Last error of every row of this run that is still open."""
        return list(self._errors.values())

    def _attempt(
        self, row: Row, question: Question, reply: Reply, seconds: float, batch: str
    ) -> Attempt:
        before, result = self._latest[row.key], {"outcome": reply.outcome, "error": reply.error}
        if self._reader is not None and reply.outcome is Outcome.OK:
            result = _reading(reply.text, row.request, self._reader)
        return Attempt(
            row=row.key,
            digest=row.digest,
            attempt=before.attempt + 1 if before else 1,
            text=reply.text,
            usage=reply.usage,
            mean_logprob=reply.mean_logprob,
            model_version=reply.model_version,
            model_status=reply.model_status,
            seconds=seconds,
            question=question.name,
            max_tokens=question.request.max_tokens,
            **self.paid(reply, batch),
            **result,
        )
