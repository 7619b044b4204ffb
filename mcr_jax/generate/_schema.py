"""Tables of the ledger, and the statements that convert a file of an older schema."""

from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.api import Outcome

VERSION = 4

_OUTCOMES = ", ".join(f"'{outcome.value}'" for outcome in Outcome)
_TABLES = f"""
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
  shared           INTEGER,
  question         TEXT    NOT NULL DEFAULT '',
  reading          TEXT    NOT NULL DEFAULT '',
  max_tokens       INTEGER,
  model_status     TEXT    NOT NULL DEFAULT '',
  service          TEXT    NOT NULL DEFAULT '',
  tier             TEXT    NOT NULL DEFAULT '',
  batch            TEXT    NOT NULL DEFAULT '',
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
# Since schema 4. `rows` holds the calls of the batch (`_rows.Item`), by index.
_STATES = ", ".join(f"'{state.value}'" for state in BatchState)
_BATCHES = f"""
CREATE TABLE IF NOT EXISTS batches (
  id               TEXT    PRIMARY KEY CHECK (id <> ''),
  service          TEXT    NOT NULL,
  stage            TEXT    NOT NULL,
  model            TEXT    NOT NULL,
  judge            TEXT    NOT NULL,
  rows             TEXT    NOT NULL CHECK (json_valid(rows)),
  state            TEXT    NOT NULL CHECK (state IN ({_STATES})),
  name             TEXT    NOT NULL,
  submitted_at     TEXT    NOT NULL,
  error            TEXT    NOT NULL
) STRICT
"""
_QUESTIONS = (
    "CREATE INDEX IF NOT EXISTS attempts_question ON attempts (question) WHERE question <> ''"
)

# Columns that older schemas lack: the schema that added the column, its name, its definition, and
# its value where an older file is read without conversion.
_ADDED = (
    (2, "mean_logprob", "REAL", "NULL"),
    (3, "shared", "INTEGER", "NULL"),
    (3, "question", "TEXT NOT NULL DEFAULT ''", "''"),
    (3, "reading", "TEXT NOT NULL DEFAULT ''", "''"),
    (3, "max_tokens", "INTEGER", "NULL"),
    (3, "model_status", "TEXT NOT NULL DEFAULT ''", "''"),
    (4, "service", "TEXT NOT NULL DEFAULT ''", "''"),
    (4, "tier", "TEXT NOT NULL DEFAULT ''", "''"),
    (4, "batch", "TEXT NOT NULL DEFAULT ''", "''"),
)
_COLUMNS = (
    *("stage", "case_fingerprint", "model", "sample", "judge", "repeat", "digest", "attempt"),
    *("outcome", "text", "verdict", "error", "prompt_tokens", "output_tokens", "cached_tokens"),
    *("model_version", "seconds"),
    *(name for _, name, _, _ in _ADDED),
)
ROWS_PER_INSERT = 100  # SQLite takes at most 32,766 values in one statement


def insert(rows: int) -> str:
    """Returns the statement that inserts `rows` attempts, ids included.

    Python releases the interpreter lock at each statement, so writing row by row would slow down
    the thread that makes the calls.
    """
    names = ("id", *_COLUMNS)
    row = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO attempts ({', '.join(names)}) VALUES {', '.join([row] * rows)}"


def statements(version: int) -> list[str]:
    """Returns the statements that convert schema `version` to `VERSION`; 0 is an empty file."""
    if version == 0:
        return [*_TABLES.split(";"), _QUESTIONS, _BATCHES]
    added = [
        f"ALTER TABLE attempts ADD COLUMN {name} {definition}"
        for since, name, definition, _ in _ADDED
        if since > version
    ]
    return [*added, _QUESTIONS, _BATCHES] if version < VERSION else []


def columns(version: int) -> dict[str, str]:
    """Returns the expression for each column in a file of schema `version`, the id first."""
    missing = {name: value for since, name, _, value in _ADDED if since > version}
    return {name: missing.get(name, f"a.{name}") for name in ("id", *_COLUMNS)}
