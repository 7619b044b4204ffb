"""The ledger: every completion and every verdict, one SQLite row per attempt.

It is the memory of a workdir: what is in it is never paid for twice, and a killed stage goes on
from it. Rows are found by what they answer (`RowKey`) and by the digest of the request, so an
answer to another prompt, seed or model is never taken for the one asked for. Each stage declares
what it wants, so that whoever counts later sees what is missing as well as what is there.
"""

import contextlib
import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Usage

SCHEMA_VERSION = 2
_PATIENCE = 30.0  # seconds to wait for another process's lock

_OUTCOMES = ", ".join(f"'{outcome.value}'" for outcome in Outcome)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS attempts (
  id               INTEGER PRIMARY KEY,
  stage            TEXT    NOT NULL CHECK (stage <> ''),
  case_fingerprint TEXT    NOT NULL CHECK (case_fingerprint <> ''),
  model            TEXT    NOT NULL CHECK (model <> ''),
  sample           INTEGER NOT NULL CHECK (sample >= 0),
  judge            TEXT    NOT NULL,
  repeat           INTEGER NOT NULL CHECK (repeat >= 0),
  digest           TEXT    NOT NULL,
  attempt          INTEGER NOT NULL CHECK (attempt >= 1),
  outcome          TEXT    NOT NULL CHECK (outcome IN ({_OUTCOMES})),
  text             TEXT    NOT NULL,
  verdict          TEXT    CHECK (verdict IS NULL OR json_valid(verdict)),
  error            TEXT    NOT NULL,
  prompt_tokens    INTEGER NOT NULL,
  output_tokens    INTEGER NOT NULL,
  cached_tokens    INTEGER NOT NULL,
  model_version    TEXT    NOT NULL,
  seconds          REAL    NOT NULL,
  created          TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  mean_logprob     REAL,
  UNIQUE (stage, case_fingerprint, model, sample, judge, repeat, digest, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS wanted (
  stage            TEXT    NOT NULL,
  case_fingerprint TEXT    NOT NULL,
  model            TEXT    NOT NULL,
  sample           INTEGER NOT NULL,
  judge            TEXT    NOT NULL,
  repeat           INTEGER NOT NULL,
  digest           TEXT    NOT NULL,
  PRIMARY KEY (stage, model, judge, case_fingerprint, sample, repeat)
) STRICT, WITHOUT ROWID
"""
_FROM_1 = "ALTER TABLE attempts ADD COLUMN mean_logprob REAL"  # what a file of schema 1 lacks
_COLUMNS = (
    "stage, case_fingerprint, model, sample, judge, repeat, digest, attempt, outcome, text, "
    "verdict, error, prompt_tokens, output_tokens, cached_tokens, model_version, seconds, "
    "mean_logprob"
)


class Scope(NamedTuple):
    """The rows one run of a stage is about: a candidate model and, for verdicts, a judge."""

    stage: str
    model: str
    judge: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class RowKey:
    """What a row answers; artifacts are joined by this, never by position.

    Attributes:
      stage: "sample", "diagnosis" or "reasons".
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

    `verdict` is what the text was parsed into, or None; `mean_logprob` as in `Reply`; `seconds` is
    wall time.
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


class Ledger:
    """A SQLite file in WAL mode. One per workdir; safe to write from several threads."""

    def __init__(self, path: str | Path, *, readonly: bool = False):
        """Opens `path`, creating it unless `readonly`; a file of schema 1 is brought to 2.

        Raises:
          McrError: it cannot be used.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        if readonly and not self.path.exists():
            raise McrError(f"{self.path}: no ledger here; run `mcr sample` first")
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={self._mode(readonly)}",
                uri=True,
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
            with self._reporting():
                self._prepare(readonly)
        except sqlite3.Error as error:
            raise McrError(f"{self.path}: cannot open the ledger: {error}") from error

    def _mode(self, readonly: bool) -> str:
        if not readonly:
            return "rwc"
        # Closed cleanly, the file is all there is: reading it need not leave a new log beside it.
        log = self.path.with_name(f"{self.path.name}-wal")
        return "ro" if log.exists() else "ro&immutable=1"

    def _prepare(self, readonly: bool) -> None:
        if not readonly:
            self._enter_wal()
            # FULL: a row acknowledged here survives a power cut, not only a killed process.
            self._db.execute("PRAGMA synchronous = FULL")
        version = self._version()
        if version not in range(1 if readonly else 0, SCHEMA_VERSION + 1):
            raise McrError(
                f"{self.path}: ledger schema {version}, this version reads 1 to {SCHEMA_VERSION}"
            )
        self._columns = [f"a.{name}" for name in _COLUMNS.split(", ")]
        if readonly and version == 1:
            self._columns[-1] = "NULL"
        if not readonly and version < SCHEMA_VERSION:
            self._bring_up_to_date()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _bring_up_to_date(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        version = self._version()  # another process may have been first
        statements = {0: _SCHEMA.split(";"), 1: [_FROM_1], SCHEMA_VERSION: []}[version]
        for statement in statements:
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def _enter_wal(self) -> None:
        # The change of mode does not wait for other processes as every other statement does: one
        # that opens the new file at the same moment would fail at once (SQLITE_BUSY).
        patience = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > patience:
                    raise
            time.sleep(0.01)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise McrError(
                f"{self.path}: {error}; rows written before are kept, run the command again"
            ) from error

    def write(self, attempt: Attempt) -> None:
        """Adds one row, durable when this returns. Raises McrError if it could not be written."""
        row, usage = attempt.row, attempt.usage
        verdict = None if attempt.verdict is None else json.dumps(attempt.verdict)
        values = (
            *_place(row),
            *(attempt.digest, attempt.attempt, str(attempt.outcome), _storable(attempt.text)),
            *(verdict, _storable(attempt.error), usage.prompt, usage.output, usage.cached),
            *(_storable(attempt.model_version), attempt.seconds, attempt.mean_logprob),
        )
        marks = ", ".join("?" * len(values))
        with self._lock, self._reporting():
            self._db.execute(f"INSERT INTO attempts ({_COLUMNS}) VALUES ({marks})", values)

    def declare(self, scope: Scope, digests: Mapping[RowKey, str]) -> None:
        """States what `scope` wants now, row by row, in place of what it wanted before.

        Verdicts on completions that are wanted no longer, or under another digest, are not wanted
        either until their stage asks for them again: they were about other texts.

        Args:
          scope: stage, model and judge that every row must bear.
          digests: the request digest each row is to be answered under.

        Raises:
          ValueError: a row lies outside the scope.
        """
        if any((row.stage, row.model, row.judge) != scope for row in digests):
            raise ValueError(f"a row lies outside {scope}")
        values = [(*_place(row), digest) for row, digest in digests.items()]
        with self._lock, self._reporting():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if scope.stage == "sample":
                    self._retire_verdicts(scope.model, values)
                self._db.execute(
                    "DELETE FROM wanted WHERE stage = ? AND model = ? AND judge = ?", scope
                )
                self._db.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _retire_verdicts(self, model: str, values: list[tuple[Any, ...]]) -> None:
        kept = {(case, sample, digest) for _, case, _, sample, _, _, digest in values}
        query = "SELECT case_fingerprint, sample, digest FROM wanted WHERE stage = ? AND model = ?"
        changed = [row for row in self._db.execute(query, ("sample", model)) if row not in kept]
        self._db.executemany(
            "DELETE FROM wanted WHERE stage <> 'sample' AND model = ?"
            " AND case_fingerprint = ? AND sample = ?",
            [(model, case, sample) for case, sample, _ in changed],
        )

    def answers(self, scope: Scope) -> dict[RowKey, Attempt | None]:
        """The newest attempt at every wanted row of `scope`, None where there was none yet."""
        query = f"""
          SELECT w.stage, w.case_fingerprint, w.model, w.sample, w.judge, w.repeat,
            {", ".join(self._columns)}
          FROM wanted w LEFT JOIN attempts a
            ON  a.stage = w.stage AND a.case_fingerprint = w.case_fingerprint
            AND a.model = w.model AND a.sample = w.sample AND a.judge = w.judge
            AND a.repeat = w.repeat AND a.digest = w.digest
            AND NOT EXISTS (
              SELECT 1 FROM attempts later
              WHERE later.stage = a.stage AND later.case_fingerprint = a.case_fingerprint
                AND later.model = a.model AND later.sample = a.sample AND later.judge = a.judge
                AND later.repeat = a.repeat AND later.digest = a.digest
                AND later.attempt > a.attempt)
          WHERE w.stage = ? AND w.model = ? AND w.judge = ?
          ORDER BY w.case_fingerprint, w.sample, w.repeat"""
        with self._lock, self._reporting():
            rows = self._db.execute(query, scope).fetchall()
        return {
            _row_key(values[:6]): None if values[6] is None else _attempt(values[6:])
            for values in rows
        }

    def count(self) -> int:
        """The number of rows."""
        with self._lock, self._reporting():
            return self._db.execute("SELECT count(*) FROM attempts").fetchone()[0]

    def close(self) -> None:
        """Closes the file, folding the write-ahead log into it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _storable(text: str) -> str:
    # SQLite stores UTF-8: a lone surrogate in hostile text must not cost the row.
    return text.encode("utf-8", "replace").decode("utf-8")


def _place(row: RowKey) -> tuple[str, str, str, int, str, int]:
    return (row.stage, row.case, row.model, row.sample, row.judge, row.repeat)


def _row_key(values: tuple[Any, ...]) -> RowKey:
    stage, case, model, sample, judge, repeat = values
    return RowKey(stage=stage, case=case, model=model, sample=sample, judge=judge, repeat=repeat)


def _attempt(values: tuple[Any, ...]) -> Attempt:
    digest, attempt, outcome, text, verdict, error, *rest = values[6:]
    prompt, output, cached, model_version, seconds, mean_logprob = rest
    return Attempt(
        row=_row_key(values[:6]),
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
    )
