"""Questions, each asked once, the ledger rows that share the answer, and its parsing."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.generate.recorder import Recorder

Parse = Callable[[Request, str], Any]  # raises ValueError when the text is not of the asked form
Known = Mapping[RowKey, Attempt | None]  # an attempt at every wanted row

_BAD = (Outcome.MALFORMED, Outcome.BLOCKED, Outcome.TRUNCATED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Makes the rows of a scope verdicts: they are parsed, shared and asked for until they are OK.

    Attributes:
      parse: turns an OK reply's text into the row's verdict; ValueError makes it MALFORMED.
      name: of the parser with its version and settings. A stored text that was read under another
        name is parsed again, without a call.
      version: the model_version that counts, "" for any. A verdict of another one is open.
    """

    parse: Parse
    name: str
    version: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row that is asked for: its key, and its request with the digest that was declared."""

    key: RowKey
    request: Request
    digest: str


@dataclasses.dataclass(kw_only=True)
class Question:
    """One call's worth.

    Attributes:
      request: what is sent; its token limit may be above that of the rows' requests.
      index: which of the request's answers.
      rows: those that the answer is for; the first is the one that the call is made for.
      name: `Request.question` where rows may share, else "".
      tries: answers that came in this run and were not good.
      failures: calls of this run that failed and may have failed because of the request.
    """

    request: Request
    index: int
    rows: Sequence[Row]
    name: str = ""
    tries: int = 0
    failures: int = 0


def is_open(attempt: Attempt | None, reader: Reader | None, attempts: int) -> bool:
    """Whether a row whose attempt this is should be asked for.

    With a reader, whenever there is no verdict of the version that counts; a prompt that is too
    long stays so. Without, until something settled it, or malformed replies have used up
    `attempts` (so that a kill between two tries changes nothing).
    """
    if attempt is None:
        return True
    if reader is None:
        bad = attempt.outcome is Outcome.MALFORMED and attempt.attempt < attempts
        return bad or not attempt.outcome.settled
    if attempt.outcome is Outcome.OK:
        return reader.version not in ("", attempt.model_version)
    return attempt.outcome is not Outcome.PROMPT_TOO_LONG


def read(attempt: Attempt, request: Request, reader: Reader) -> Attempt:
    """`attempt` with its text parsed by `reader`: OK with a verdict, or MALFORMED."""
    return dataclasses.replace(attempt, **_reading(attempt.text, request, reader))


def _reading(text: str, request: Request, reader: Reader) -> dict[str, Any]:
    """The fields of an attempt that follow from its text."""
    try:
        verdict, outcome, error = reader.parse(request, text), Outcome.OK, ""
    except ValueError as problem:
        verdict, outcome, error = None, Outcome.MALFORMED, str(problem)
    return {"verdict": verdict, "outcome": outcome, "error": error, "reading": reader.name}


def token_limit(request: Request, attempt: Attempt | None, most: int) -> int:
    """The limit to ask with: that of the last attempt, twice as many after a truncated one."""
    limit = (attempt and attempt.max_tokens) or request.max_tokens
    if attempt is not None and attempt.outcome is Outcome.TRUNCATED:
        limit *= 2
    return max(request.max_tokens, min(limit, most))


class Settler:
    """Turns replies into rows of the ledger, and says what is to be asked again.

    Args:
      known: the newest attempt at every wanted row.
      reader: of a scope of verdicts.
      attempts: answers per row before it is left as it is.
      most_tokens: largest limit that a truncated row is asked again with.
      recorder: takes the rows.
    """

    def __init__(
        self,
        known: Known,
        reader: Reader | None,
        attempts: int,
        most_tokens: int,
        recorder: Recorder,
    ):
        self._latest, self._reader, self._attempts = dict(known), reader, attempts
        self._most_tokens, self._recorder = most_tokens, recorder
        self._errors: dict[RowKey, str] = {}

    def settle(self, question: Question, reply: Reply, seconds: float) -> Question | None:
        """Records a reply. Returns what is left to ask again in this run, for fewer rows perhaps.

        Raises:
          McrError: rows cannot be written.
        """
        question.tries += 1
        made, left = [], []
        for row in question.rows:
            attempt = self._attempt(row, question, reply, seconds)
            made.append(attempt if not made else dataclasses.replace(attempt, usage=Usage()))
            self._latest[row.key] = attempt
            self._errors.pop(row.key, None)
            if is_open(attempt, self._reader, self._attempts):
                left.append(row)
                self._errors[row.key] = attempt.error or self._why(attempt)
        self._recorder.put(made, len(made) - len(left))
        again = [row for row in left if self._again(self._latest[row.key], question)]
        if not again:
            return None
        question.rows = again
        if self._reader is not None:
            limits = (
                token_limit(row.request, self._latest[row.key], self._most_tokens) for row in again
            )
            question.request = dataclasses.replace(question.request, max_tokens=max(limits))
        return question

    def give_up(self, question: Question, error: str) -> None:
        """Leaves rows open in this run although nothing was recorded for them."""
        self._errors |= {row.key: error for row in question.rows}

    @property
    def errors(self) -> list[str]:
        """The last error of every row that was asked for and is still open."""
        return list(self._errors.values())

    def _again(self, attempt: Attempt, question: Question) -> bool:
        if question.tries >= self._attempts:
            return False
        return self._reader is None or attempt.outcome in _BAD

    def _why(self, attempt: Attempt) -> str:
        version = self._reader.version if self._reader else ""
        return f"answered by model version {attempt.model_version}, not {version}"

    def _attempt(self, row: Row, question: Question, reply: Reply, seconds: float) -> Attempt:
        before, known = self._latest[row.key], {"outcome": reply.outcome, "error": reply.error}
        if self._reader is not None and reply.outcome is Outcome.OK:
            known = _reading(reply.text, row.request, self._reader)
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
            **known,
        )
