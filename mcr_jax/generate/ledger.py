"""The ledger: every completion and every verdict, one SQLite row per attempt.

It is the memory of a workdir: what is in it is never paid for twice, and a killed stage goes on
from it. Rows are found by what they answer (`RowKey`) and by the digest of the request, so an
answer to another prompt, seed or model is never taken for the one asked for. Each stage declares
what it wants, so that whoever counts later sees what is missing as well as what is there.
"""

import contextlib
import dataclasses
import shlex
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.generate import _rows, _schema
from mcr_jax.generate._rows import Attempt, RowKey, Scope
from mcr_jax.generate.api import Outcome
from mcr_jax.workdir import Workdir

_LOCK_WAIT_S = 30.0  # for another process's lock
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Ledger:
    """A SQLite file in WAL mode. One per workdir; safe to write from several threads."""

    def __init__(self, path: str | Path, *, readonly: bool = False):
        """Opens `path`, creating it unless `readonly`; a file of an older schema is converted.

        Raises:
          McrError: it cannot be used.
        """
        self.path, self.readonly = Path(path), readonly
        self.written = 0  # attempts that this object added or read again
        self.memo: dict[Any, Any] = {}  # of readers (`generate.joined`): no text is read twice
        self._lock = threading.Lock()
        if readonly and not self.path.exists():
            raise McrError(f"{self.path}: no ledger here; run `mcr sample` first")
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={self._mode(readonly)}",
                uri=True,
                timeout=_LOCK_WAIT_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise McrError(f"{self.path}: cannot open the ledger: {error}") from error
        with self._reporting():
            self._prepare(readonly)

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
        if version not in range(1 if readonly else 0, _schema.VERSION + 1):
            raise McrError(
                f"{self.path}: ledger schema {version}, this version reads 1 to {_schema.VERSION}"
            )
        if not readonly and version < _schema.VERSION:
            version = self._bring_up_to_date()
        self._columns = _schema.columns(version)
        self._shares = version >= 3

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _bring_up_to_date(self) -> int:
        with self._transaction():
            for statement in _schema.statements(self._version()):  # another may have been first
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_schema.VERSION}")
        return _schema.VERSION

    def _enter_wal(self) -> None:
        # The change of mode does not wait for other processes as every other statement does: one
        # that opens the new file at the same moment would fail at once (SQLITE_BUSY).
        give_up = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > give_up:
                    raise
            time.sleep(0.01)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commits what the block writes, or nothing of it."""
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
            # The Python module's own error about text that is not UTF-8 has no code.
            if "decode" in str(error) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                path = shlex.quote(str(self.path))
                raise McrError(
                    f"{self.path}: {error}; this file is damaged: `sqlite3 {path} .recover | "
                    "sqlite3 NEW` saves the rows that can be read, put NEW in its place"
                ) from error
            raise McrError(
                f"{self.path}: {error}; rows written before are kept, run the command again"
            ) from error

    def write(self, attempt: Attempt) -> None:
        """Adds one row, durable when this returns. Raises McrError if it could not be written."""
        self.write_all([[attempt]])

    def write_all(self, groups: Iterable[Sequence[Attempt]]) -> None:
        """Adds rows in one transaction, durable when this returns.

        Args:
          groups: attempts that one call answered. The first row of a group is the one that the
            call was made for; the others get its id as `shared`.

        Raises:
          McrError: they could not be written; then none of them is.
        """
        with self._lock, self._reporting(), self._transaction():
            (made,) = self._db.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()
            rows = []
            for first, *others in groups:
                made += 1
                rows.append((made, *_rows.values_of(first)))
                call = made if first.shared is None else first.shared
                for other in others:
                    made += 1
                    copy = dataclasses.replace(other, shared=call)
                    rows.append((made, *_rows.values_of(copy)))
            for start in range(0, len(rows), _schema.ROWS_AT_ONCE):
                part = rows[start : start + _schema.ROWS_AT_ONCE]
                self._db.execute(_schema.insert(len(part)), [v for row in part for v in row])
            self.written += len(rows)

    def reread(self, attempts: Iterable[Attempt]) -> None:
        """Replaces outcome, verdict, error and reading of rows whose text was parsed again.

        Raises:
          McrError: they could not be written; then none of them is.
        """
        values = [
            (str(a.outcome), _rows.json_text(a.verdict), _rows.storable(a.error), a.reading, a.id)
            for a in attempts
        ]
        query = "UPDATE attempts SET outcome = ?, verdict = ?, error = ?, reading = ? WHERE id = ?"
        with self._lock, self._reporting(), self._transaction():
            self._db.executemany(query, values)
            self.written += len(values)

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
        self._db.executemany(
            "DELETE FROM wanted WHERE stage <> 'sample' AND model = ?"
            " AND case_fingerprint = ? AND sample = ?",
            [(model, case, sample) for case, sample, _ in changed],
        )

    def answers(
        self, scope: Scope, version: str = "", *, newest: bool = False
    ) -> dict[RowKey, Attempt | None]:
        """The attempt that counts at every wanted row of `scope`, None where there was none yet.

        It is the newest OK one, or where none is OK the newest.

        Args:
          scope: stage, model and judge.
          version: attempts with this model_version go before all others; "" for any.
          newest: whether to take the newest, also where an earlier one counts.

        Raises:
          McrError: the file or a row in it is damaged.
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

    def held(self, scope: Scope) -> int:
        """The number of wanted rows of `scope` at which there was an attempt, good or bad."""
        query = """
          SELECT count(*) FROM wanted w
          WHERE w.stage = ? AND w.model = ? AND w.judge = ? AND EXISTS (
            SELECT 1 FROM attempts b
            WHERE b.stage = w.stage AND b.case_fingerprint = w.case_fingerprint
              AND b.model = w.model AND b.sample = w.sample AND b.judge = w.judge
              AND b.repeat = w.repeat AND b.digest = w.digest)"""
        return self._fetch(query, scope)[0][0]

    def equal(self, questions: Iterable[str], version: str = "") -> dict[str, Attempt]:
        """The newest OK attempt at each of these `questions` that has one, of any row.

        Args:
          questions: as in `Attempt.question`.
          version: the only model_version that counts; "" for any.
        """
        if not self._shares:
            return {}
        # SQLite takes the index only where the query repeats the index's own condition.
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

    def versions(self, scope: Scope) -> dict[str, int]:
        """Counts the verdicts of `scope` by model_version, the most frequent first."""
        counts = Counter(
            attempt.model_version
            for attempt in self.answers(scope).values()
            if attempt is not None and attempt.outcome is Outcome.OK
        )
        return dict(counts.most_common())

    @property
    def changes(self) -> int:
        """The number of rows that this object has inserted, changed or deleted."""
        return self._db.total_changes

    def count(self) -> int:
        """The number of rows."""
        return self._fetch("SELECT count(*) FROM attempts", ())[0][0]

    def _fetch(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock, self._reporting():
            return self._db.execute(query, values).fetchall()

    def _attempt(self, values: tuple[Any, ...]) -> Attempt:
        try:
            return _rows.attempt_of(values)
        except (ValueError, RecursionError) as error:
            place = _rows.told(_rows.row_key(values[1:7]))
            raise McrError(
                f"{self.path}: row {values[0]} is damaged ({place}): {error}; to have "
                f'it made again: sqlite3 {shlex.quote(str(self.path))} "DELETE FROM attempts '
                f'WHERE id = {values[0]}"'
            ) from error

    def close(self) -> None:
        """Closes the file, folding the write-ahead log into it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@contextlib.contextmanager
def opened(workdir: Workdir, *, readonly: bool = False) -> Iterator[Ledger]:
    """Opens the ledger of a workdir. While that is locked, one connection serves every caller.

    Raises McrError as `Ledger`.
    """
    if workdir.kept is None:
        with Ledger(workdir.ledger, readonly=readonly) as ledger:
            yield ledger
        return
    kept = workdir.kept.get("ledger")
    if kept is None or (kept.readonly and not readonly):
        if kept is not None:
            kept.close()
        kept = workdir.kept["ledger"] = Ledger(workdir.ledger, readonly=readonly)
    yield kept


def damaged(attempt: Attempt, error: str) -> str:
    """One line about a stored verdict of another form, and how to have its reply read again."""
    where = _rows.told(attempt.row)
    command = "stitch" if attempt.row.stage == "distortion" else "judge"
    return (
        f"ledger.sqlite: row {attempt.id} is damaged ({where}): the verdict {error}; `mcr "
        f"{command}` reads its reply again after: sqlite3 ledger.sqlite "
        f"\"UPDATE attempts SET reading = '' WHERE id = {attempt.id}\""
    )
