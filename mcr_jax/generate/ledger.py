"""The ledger: every completion and every verdict, one SQLite row per attempt.

A recorded answer is never requested again, and a killed stage resumes from the ledger. A row is
found by its key (`RowKey`) and by the digest of its request: an answer to another prompt, seed or
model is never used. Each stage declares the rows that it wants, so that missing rows are counted.
"""

import contextlib
import dataclasses
import shlex
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.generate import _rows, _schema
from mcr_jax.generate._rows import Attempt, Batch, BatchState, RowKey, Scope
from mcr_jax.generate._rows import damaged as damaged
from mcr_jax.workdir import Workdir

_LOCK_WAIT_S = 30.0  # for the lock of another process
_LOCK_POLL_S = 0.01
_PUT_BATCH = (
    f"INSERT INTO batches ({_rows.BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET state = excluded.state, name = excluded.name, "
    "submitted_at = excluded.submitted_at, error = excluded.error"
)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Ledger:
    """SQLite file in WAL mode. One per workdir; several threads may write.

    Attributes:
      path: the file.
      readonly: True if the file was opened for reading only.
      written: number of attempts that this object added or parsed again.
      memo: cache for readers, such as `generate.joined`: a text is parsed once.
      columns: SQL of each column of `attempts a`; a constant where an older file lacks it.
    """

    def __init__(self, path: str | Path, *, readonly: bool = False):
        """Opens `path`. Unless `readonly`, creates it or converts a file of an older schema.

        Raises:
          McrError: the file cannot be used.
        """
        self.path, self.readonly, self.written = Path(path), readonly, 0
        self.memo: dict[Any, Any] = {}
        self._lock = threading.Lock()
        if readonly and not self.path.exists():
            raise McrError(f"{self.path}: no ledger here; run `mcr sample` first")
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={self._mode()}",
                uri=True,
                timeout=_LOCK_WAIT_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise McrError(f"{self.path}: cannot open the ledger: {error}") from error
        with self._reporting():
            self._prepare()

    def _mode(self) -> str:
        if not self.readonly:
            return "rwc"
        # After a clean close there is no log file; `immutable` keeps SQLite from creating one.
        log = self.path.with_name(f"{self.path.name}-wal")
        return "ro" if log.exists() else "ro&immutable=1"

    def _prepare(self) -> None:
        if not self.readonly:
            self._enter_wal()
            # FULL: an acknowledged row survives a power cut, not only a killed process.
            self._db.execute("PRAGMA synchronous = FULL")
        version = self._pragma("user_version")
        if version not in range(1 if self.readonly else 0, _schema.VERSION + 1):
            raise McrError(
                f"{self.path}: ledger schema {version}, this version reads 1 to {_schema.VERSION}"
            )
        if not self.readonly and version < _schema.VERSION:
            version = _schema.VERSION
            with self._transaction():
                # Read again: another process may have converted the file meanwhile.
                for statement in _schema.statements(self._pragma("user_version")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {version}")
        self.columns = _schema.columns(version)
        self._columns = ", ".join(self.columns.values())
        self._has_questions, self._has_batches = version >= 3, version >= 4

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _enter_wal(self) -> None:
        # Unlike every other statement, this one does not wait for the lock of another process that
        # creates the file at the same moment: it fails at once (SQLITE_BUSY).
        give_up = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > give_up:
                    raise
            time.sleep(_LOCK_POLL_S)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commits all that the block writes, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # The error of Python's sqlite3 about text that is not UTF-8 has no code.
            if "decode" in str(error) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                path = shlex.quote(str(self.path))
                raise McrError(
                    f"{self.path}: {error}; this file is damaged: `sqlite3 {path} .recover | "
                    "sqlite3 NEW` saves the readable rows, put NEW in its place"
                ) from error
            raise McrError(
                f"{self.path}: {error}; rows written before are kept, run the command again"
            ) from error

    def write(self, attempt: Attempt) -> None:
        """Adds one row, durable on return. Raises McrError if it cannot be written."""
        self.write_all([[attempt]])

    def write_all(self, groups: Iterable[Sequence[Attempt]], *, batch: Batch | None = None) -> None:
        """Adds rows in one transaction, durable on return.

        Args:
          groups: attempts that share one request. It was made for the first of a group; the others
            store that attempt's id in `shared`.
          batch: stored in the same transaction, so that its replies are never written twice.

        Raises:
          McrError: the rows cannot be written; then none of them is.
        """
        with self._lock, self._reporting():
            with self._transaction():
                (newest,) = self._db.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()
                rows: list[tuple[Any, ...]] = []
                for group in groups:
                    first, call = group[0], newest + len(rows) + 1
                    call = call if first.shared is None else first.shared
                    copies = (dataclasses.replace(other, shared=call) for other in group[1:])
                    for attempt in (first, *copies):
                        rows.append((newest + len(rows) + 1, *_rows.values_of(attempt)))
                for start in range(0, len(rows), _schema.ROWS_PER_INSERT):
                    part = rows[start : start + _schema.ROWS_PER_INSERT]
                    self._db.execute(_schema.insert(len(part)), [v for row in part for v in row])
                if batch is not None:
                    self._db.execute(_PUT_BATCH, _rows.batch_values(batch))
            self.written += len(rows)

    def put_batch(self, batch: Batch) -> Batch:
        """Stores a batch in place of its earlier state, durable on return; returns it."""
        self.write_all((), batch=batch)
        return batch

    def batches(self) -> list[Batch]:
        """Returns the open batches, in the order of their plans.

        Raises:
          McrError: the file or a row is damaged.
        """
        if not self._has_batches:
            return []
        states = [str(state) for state in BatchState if state.is_open]
        query = (
            f"SELECT {_rows.BATCH_COLUMNS} FROM batches "
            f"WHERE state IN ({', '.join('?' * len(states))}) ORDER BY rowid"
        )
        found = []
        for values in self._fetch(query, tuple(states)):
            try:
                found.append(_rows.batch_of(values))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise McrError(f"{self.path}: batch {values[0]!r} is damaged: {error}") from error
        return found

    def tried(self, row: RowKey, digest: str) -> int:
        """Returns the number of the newest attempt at `row` under `digest`; 0 without one."""
        query = (
            "SELECT coalesce(max(attempt), 0) FROM attempts WHERE stage = ? AND "
            "case_fingerprint = ? AND model = ? AND sample = ? AND judge = ? AND repeat = ? "
            "AND digest = ?"
        )
        return self._fetch(query, (*_rows.place(row), digest))[0][0]

    def reread(self, attempts: Iterable[Attempt]) -> None:
        """Replaces outcome, verdict, error and reading of rows whose text was parsed again.

        Raises:
          McrError: the rows cannot be written; then none of them is.
        """
        values = [
            (str(a.outcome), _rows.json_text(a.verdict), _rows.storable(a.error), a.reading, a.id)
            for a in attempts
        ]
        query = "UPDATE attempts SET outcome = ?, verdict = ?, error = ?, reading = ? WHERE id = ?"
        with self._lock, self._reporting():
            with self._transaction():
                self._db.executemany(query, values)
            self.written += len(values)

    def declare(self, scope: Scope, digests: Mapping[RowKey, str]) -> None:
        """Replaces the wanted rows of `scope`.

        If a completion is dropped or its request changes, its verdicts are dropped too: they judge
        another text. The judging stage must declare them again.

        Args:
          scope: stage, model and judge of every row.
          digests: request digest of each wanted row.

        Raises:
          ValueError: a row is outside the scope.
        """
        if any((row.stage, row.model, row.judge) != scope for row in digests):
            raise ValueError(f"a row is outside {scope}")
        values = [(*_rows.place(row), digest) for row, digest in digests.items()]
        with self._lock, self._reporting(), self._transaction():
            if scope.stage == "sample":
                self._retire_verdicts(scope.model, values)
            self._db.execute(
                "DELETE FROM wanted WHERE stage = ? AND model = ? AND judge = ?", scope
            )
            self._db.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def _retire_verdicts(self, model: str, values: list[tuple[Any, ...]]) -> None:
        kept = {(case, sample, digest) for _, case, _, sample, _, _, digest in values}
        query = "SELECT case_fingerprint, sample, digest FROM wanted WHERE stage = ? AND model = ?"
        changed = [row for row in self._db.execute(query, ("sample", model)) if row not in kept]
        query = "SELECT DISTINCT stage, judge FROM wanted WHERE model = ? AND stage <> 'sample'"
        scopes = self._db.execute(query, (model,)).fetchall()
        places = [(*of, model, *row[:2]) for of in scopes for row in changed]
        query = "DELETE FROM wanted WHERE stage = ? AND judge = ? AND model = ?"
        self._db.executemany(f"{query} AND case_fingerprint = ? AND sample = ?", places)

    def answers(
        self, scope: Scope, version: str = "", *, newest: bool = False
    ) -> dict[RowKey, Attempt | None]:
        """Returns the attempt that counts for each wanted row of `scope`, None without an attempt.

        The newest OK attempt counts; without an OK attempt, the newest.

        Args:
          scope: stage, model and judge.
          version: preferred model_version of attempts; "" prefers none.
          newest: True returns the newest attempt even if an older one is OK.

        Raises:
          McrError: the file or a row is damaged.
        """
        order = "" if newest else "b.outcome = 'OK' DESC,"
        if version:
            order = f"b.model_version = ? DESC, {order}"
        query = f"""
          SELECT w.stage, w.case_fingerprint, w.model, w.sample, w.judge, w.repeat, {self._columns}
          FROM wanted w LEFT JOIN attempts a ON a.id = (
            SELECT id FROM attempts b
            WHERE b.stage = w.stage AND b.case_fingerprint = w.case_fingerprint
              AND b.model = w.model AND b.sample = w.sample AND b.judge = w.judge
              AND b.repeat = w.repeat AND b.digest = w.digest
            ORDER BY {order} b.attempt DESC LIMIT 1)
          WHERE w.stage = ? AND w.model = ? AND w.judge = ?
          ORDER BY w.case_fingerprint, w.sample, w.repeat"""
        rows = self._fetch(query, ((version,) if version else ()) + scope)
        return {
            _rows.row_key(values[:6]): None if values[6] is None else self._attempt(values[6:])
            for values in rows
        }

    def reported(self, scope: Scope) -> set[tuple[str, str]]:
        """Returns model_version and model_status of the attempts at the wanted rows of `scope`."""
        query = """
          SELECT DISTINCT a.model_version, a.model_status FROM attempts a JOIN wanted w
          ON a.stage = w.stage AND a.case_fingerprint = w.case_fingerprint AND a.model = w.model
            AND a.sample = w.sample AND a.judge = w.judge AND a.repeat = w.repeat
            AND a.digest = w.digest
          WHERE w.stage = ? AND w.model = ? AND w.judge = ?"""
        return set(self._fetch(query, scope))

    def held(self, scope: Scope) -> int:
        """Counts the wanted rows of `scope` that have an attempt, good or bad."""
        query = """
          SELECT count(*) FROM wanted w
          WHERE w.stage = ? AND w.model = ? AND w.judge = ? AND EXISTS (
            SELECT 1 FROM attempts b
            WHERE b.stage = w.stage AND b.case_fingerprint = w.case_fingerprint
              AND b.model = w.model AND b.sample = w.sample AND b.judge = w.judge
              AND b.repeat = w.repeat AND b.digest = w.digest)"""
        return self._fetch(query, scope)[0][0]

    def equal(self, questions: Iterable[str], version: str = "") -> dict[str, Attempt]:
        """Returns the newest OK attempt, at any row, for each of `questions` that has one.

        Args:
          questions: see `Attempt.question`.
          version: the only model_version that counts; "" for any.
        """
        if not self._has_questions:
            return {}
        # SQLite uses the index only if the query repeats the index's condition.
        query = (
            f"SELECT {self._columns} FROM attempts a WHERE a.question = ? AND a.question <> '' "
            f"AND a.outcome = 'OK' {'AND a.model_version = ?' if version else ''} "
            "ORDER BY a.id DESC LIMIT 1"
        )
        found = {}
        for question in questions:
            for values in self._fetch(query, (question, version) if version else (question,)):
                found[question] = self._attempt(values)
        return found

    def scopes(self) -> list[Scope]:
        """Returns the scopes that have wanted rows, by stage, model and judge."""
        query = "SELECT DISTINCT stage, model, judge FROM wanted ORDER BY stage, model, judge"
        return [Scope(*values) for values in self._fetch(query, ())]

    @property
    def changes(self) -> tuple[int, int]:
        """Two numbers that change when this object, or another connection, changes the file."""
        with self._lock, self._reporting():
            return self._db.total_changes, self._pragma("data_version")

    def count(self) -> int:
        """Counts the attempts."""
        return self._fetch("SELECT count(*) FROM attempts", ())[0][0]

    def select(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Returns the rows of a query that only reads. Raises McrError if the file is damaged."""
        return self._fetch(query, values)

    def _fetch(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock, self._reporting():
            return self._db.execute(query, values).fetchall()

    def _attempt(self, values: tuple[Any, ...]) -> Attempt:
        try:
            return _rows.attempt_of(values)
        except (ValueError, RecursionError) as error:
            place = _rows.described(_rows.row_key(values[1:7]))
            raise McrError(
                f"{self.path}: row {values[0]} is damaged ({place}): {error}; delete it to have it "
                f'made again: sqlite3 {shlex.quote(str(self.path))} "DELETE FROM attempts '
                f'WHERE id = {values[0]}"'
            ) from error

    def close(self) -> None:
        """Closes the file; SQLite merges the write-ahead log into it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@contextlib.contextmanager
def opened(workdir: Workdir, *, readonly: bool = False) -> Iterator[Ledger]:
    """Opens the ledger of a workdir. While the workdir is locked, all callers share a connection.

    If a caller wants to write, a shared read-only connection is closed and opened again; no other
    caller may be using it then.

    Raises McrError as `Ledger`.
    """
    if workdir.kept is None:
        with Ledger(workdir.ledger, readonly=readonly) as ledger:
            yield ledger
        return
    ledger = workdir.kept.get("ledger")
    if ledger is not None and ledger.readonly and not readonly:
        workdir.kept.pop("ledger").close()
        ledger = None
    if ledger is None:
        ledger = workdir.kept["ledger"] = Ledger(workdir.ledger, readonly=readonly)
    yield ledger
