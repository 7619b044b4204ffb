"""The ledger keeps every acknowledged row, even if the process is killed, and joins by key."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from mcr_jax.errors import McrError
from mcr_jax.generate._rows import Batch, BatchState, Item
from mcr_jax.generate.api import Outcome, Usage
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, opened
from mcr_jax.workdir import Workdir

SCOPE = Scope("diagnosis", "sft", "offline")
# Files of each earlier schema, written by the code of that time.
OLD = {n: pathlib.Path(__file__).parent / "golden" / f"ledger_{n}.sqlite" for n in (1, 2, 3)}

# Writes rows for ever, or up to a count, and acknowledges each on stdout after it is written.
WRITER = """
import itertools, sys
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey
path, name, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Ledger(path) as ledger:
    for i in range(count) if count else itertools.count():
        row = RowKey(stage="sample", case=name, model="sft", sample=i)
        ledger.write(Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK, text="x" * size))
        print(i, flush=True)
"""


def row(sample=0, case="c1", **changes):
    return RowKey(
        **{"stage": "diagnosis", "case": case, "model": "sft", "sample": sample, "judge": "offline"}
        | changes
    )


def attempt(key=None, number=1, digest="d1", **changes):
    return Attempt(
        **{"row": key or row(), "digest": digest, "attempt": number, "outcome": Outcome.OK}
        | changes
    )


def writer(path, name, count=0, size=10):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def test_attempt_comes_back_as_it_was_written(ledger):
    written = attempt(
        text='{"same": true}',
        verdict={"same": True, "quotes": [["a “b”"]]},
        usage=Usage(prompt=11, output=12, cached=3),
        model_version="m-1",
        seconds=0.25,
        mean_logprob=-1.5,
    )
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(written)
    assert ledger.answers(SCOPE) == {row(): written}


@pytest.mark.parametrize(
    "text", ["", "a\0b", "'); DROP TABLE attempts; --", "😀‮\u2009", "x" * 1_000_000, "\r\n\t"]
)
def test_any_text_comes_back_unchanged(ledger, text):
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(attempt(text=text, error=text, outcome=Outcome.MALFORMED))
    answer = ledger.answers(SCOPE)[row()]
    assert (answer.text, answer.error) == (text, text)


def test_a_lone_surrogate_becomes_a_question_mark(ledger):
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(
        attempt(text="a\ud800b", error="\udfff", verdict=["\ud800"], model_version="\ud800")
    )
    answer = ledger.answers(SCOPE)[row()]
    assert (answer.text, answer.error, answer.model_version) == ("a?b", "?", "?")
    assert answer.verdict == ["\ud800"]


def test_the_newest_attempt_counts_and_older_ones_stay(ledger):
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(attempt(number=1, outcome=Outcome.INFRA_ERROR))
    ledger.write(attempt(number=2, text="later"))
    assert ledger.answers(SCOPE)[row()].text == "later"
    assert ledger.count() == 2


def test_an_answer_under_another_digest_does_not_count(ledger):
    ledger.write(attempt(digest="old prompt"))
    ledger.declare(SCOPE, {row(): "new prompt"})
    assert ledger.answers(SCOPE) == {row(): None}


def test_rows_that_differ_in_any_key_field_are_different_rows(ledger):
    keys = [row(), row(1), row(case="c2"), row(repeat=1)]
    ledger.declare(SCOPE, dict.fromkeys(keys, "d1"))
    for i, key in enumerate(keys):
        ledger.write(attempt(key, text=str(i)))
    assert {k: a.text for k, a in ledger.answers(SCOPE).items()} == dict(
        zip(keys, "0123", strict=True)
    )


def test_declaring_again_replaces_what_the_scope_wanted_and_no_other_scope(ledger):
    other = Scope("diagnosis", "base", "offline")
    ledger.declare(other, {row(model="base"): "d1"})
    ledger.declare(SCOPE, {row(0): "d1", row(1): "d1"})
    ledger.declare(SCOPE, {row(1): "d1"})
    assert set(ledger.answers(SCOPE)) == {row(1)}
    assert set(ledger.answers(other)) == {row(model="base")}


def test_verdicts_of_changed_completions_are_dropped_without_a_scan_for_each(ledger):
    steps = []
    for rows in (100, 1000):
        steps.append(0)
        sampled = Scope("sample", "sft")
        samples = [row(i, stage="sample", judge="") for i in range(rows)]
        ledger.declare(sampled, dict.fromkeys(samples, "old"))
        verdicts = {stage: Scope(stage, "sft", "judge") for stage in ("diagnosis", "reasons")}
        for stage, scope in verdicts.items():
            ledger.declare(scope, {row(i, stage=stage, judge="judge"): "d" for i in range(rows)})

        def count():
            steps[-1] += 1

        ledger._db.set_progress_handler(count, 10)  # every ten instructions of SQLite
        ledger.declare(sampled, dict.fromkeys(samples, "new") | {samples[0]: "old"})
        ledger._db.set_progress_handler(None, 0)
        for stage, scope in verdicts.items():
            assert list(ledger.answers(scope)) == [row(0, stage=stage, judge="judge")]
    assert steps[1] <= 12 * steps[0]


def test_declaring_a_row_of_another_scope_is_refused_and_changes_nothing(ledger):
    ledger.declare(SCOPE, {row(): "d1"})
    with pytest.raises(ValueError, match="outside"):
        ledger.declare(SCOPE, {row(model="base"): "d1"})
    assert set(ledger.answers(SCOPE)) == {row()}


def test_same_attempt_twice_is_refused_and_the_first_stays(ledger):
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(attempt(text="first"))
    with pytest.raises(McrError, match=r"ledger\.sqlite"):
        ledger.write(attempt(text="second"))
    assert ledger.answers(SCOPE)[row()].text == "first"


@pytest.mark.parametrize(
    "bad", [{"stage": ""}, {"case": ""}, {"model": ""}, {"sample": -1}, {"repeat": -1}]
)
def test_row_without_identity_is_refused(ledger, bad):
    with pytest.raises(McrError):
        ledger.write(attempt(row(**bad)))
    assert ledger.count() == 0


def test_rows_are_there_after_reopening(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.declare(SCOPE, {row(): "d1"})
        ledger.write(attempt(text="kept"))
    with Ledger(path, readonly=True) as ledger:
        assert ledger.answers(SCOPE)[row()].text == "kept"


def test_missing_ledger_for_reading_says_which_command_makes_it(tmp_path):
    with pytest.raises(McrError, match="run `mcr sample` first"):
        Ledger(tmp_path / "ledger.sqlite", readonly=True)
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_text("These are notes, not a ledger. " * 50)
    before = path.read_bytes()
    with pytest.raises(McrError, match=r"ledger\.sqlite"):
        Ledger(path)
    assert path.read_bytes() == before
    with pytest.raises(McrError, match="cannot open"):
        Ledger(tmp_path)


def test_ledger_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(McrError, match="schema 99"):
        Ledger(path)


def of_old_schema(ledger, schema):
    (answered, missing) = ledger.answers(Scope("sample", "sft")).values()
    assert (answered.text, answered.usage) == (
        "<answer>violet rime</answer>",
        Usage(prompt=11, output=12, cached=3),
    )
    assert answered.mean_logprob == {1: None}.get(schema, -0.25) and missing is None
    (verdict,) = ledger.answers(SCOPE).values()
    assert verdict.verdict == {"same": True}
    assert (verdict.shared, verdict.question, verdict.reading, verdict.max_tokens) == (
        *(None, "", "", None),
    )
    assert (verdict.service, verdict.tier) == ("", "")
    assert ledger.equal(["any"]) == {}


@pytest.mark.parametrize("schema", OLD)
def test_ledger_of_an_old_schema_is_read_as_it_is(tmp_path, schema):
    path = pathlib.Path(shutil.copy(OLD[schema], tmp_path))
    with Ledger(path, readonly=True) as ledger:
        of_old_schema(ledger, schema)
    assert path.read_bytes() == OLD[schema].read_bytes()


@pytest.mark.parametrize("schema", OLD)
def test_ledger_of_an_old_schema_is_converted_when_opened_for_writing(tmp_path, schema):
    path = shutil.copy(OLD[schema], tmp_path)
    new = {"mean_logprob": -0.5, "question": "q", "service": "openai:m", "tier": "batch"}
    newer = attempt(row(stage="sample", judge="", sample=1), **new)
    with Ledger(path) as ledger:
        of_old_schema(ledger, schema)
        ledger.write(newer)
    for readonly in (True, False):
        with Ledger(path, readonly=readonly) as ledger:
            assert ledger.answers(Scope("sample", "sft"))[newer.row] == newer
            assert ledger.equal(["q"]) == {"q": newer}
            assert ledger.count() == 3


@pytest.mark.parametrize("schema", OLD)
def test_a_new_file_has_the_tables_of_a_converted_one(tmp_path, schema):
    shutil.copy(OLD[schema], tmp_path / "old")
    shapes = []
    for name in ("old", "new"):
        Ledger(tmp_path / name).close()
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as db:
            columns = db.execute("PRAGMA table_info(attempts)").fetchall()
            shapes.append((columns, db.execute("PRAGMA index_list(attempts)").fetchall()))
    assert shapes[0] == shapes[1]


def test_processes_bring_a_file_up_to_date_at_the_same_time(tmp_path):
    path = shutil.copy(OLD[1], tmp_path)
    writers = [writer(path, name, count=3) for name in ("one", "two", "three")]
    assert [w.communicate(timeout=120)[0].split() for w in writers] == [["0", "1", "2"]] * 3
    with Ledger(path) as ledger:
        assert ledger.count() == 2 + 9


def test_rows_of_one_call_name_the_row_that_made_it_and_cost_nothing_more(ledger):
    rows = {row(i): "d1" for i in range(3)}
    ledger.declare(SCOPE, rows)
    ledger.write_all([[attempt(key, question="q") for key in rows]])
    first, *others = ledger.answers(SCOPE).values()
    assert first.shared is None and first.id
    assert [other.shared for other in others] == [first.id] * 2
    later = row(case="c2")
    ledger.write(attempt(later, shared=first.id))
    ledger.declare(SCOPE, {later: "d1"})
    assert ledger.answers(SCOPE)[later].shared == first.id


def test_rows_written_together_are_all_there_or_none(ledger):
    ledger.write(attempt(row(1)))
    with pytest.raises(McrError):
        ledger.write_all([[attempt(row(0))], [attempt(row(1))]])
    assert ledger.count() == ledger.written == 1
    ledger.write(attempt(row(0)))


def test_rows_whose_commit_fails_are_not_counted_as_written(ledger):
    def deny_commit(action, argument, *_):
        denied = action == sqlite3.SQLITE_TRANSACTION and argument == "COMMIT"
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(attempt(outcome=Outcome.MALFORMED))
    stored = ledger.answers(SCOPE)[row()]
    ledger._db.set_authorizer(deny_commit)
    for write in (lambda: ledger.write(attempt(row(1))), lambda: ledger.reread([stored])):
        with pytest.raises(McrError, match="not authorized"):
            write()
    ledger._db.set_authorizer(None)
    assert ledger.count() == ledger.written == 1


def test_changes_differ_after_every_write_of_this_and_of_another_connection(ledger):
    seen = [ledger.changes]
    with Ledger(ledger.path) as other:
        for write in (ledger.write, other.write, ledger.write):
            write(attempt(row(len(seen))))
            seen.append(ledger.changes)
    assert len(set(seen)) == 4 and ledger.changes == seen[-1]


def test_callers_share_a_connection_while_the_workdir_is_locked(tmp_path):
    workdir = Workdir(tmp_path)
    with workdir.locked(), opened(workdir) as one, opened(workdir, readonly=True) as two:
        assert one is two and not one.readonly
    with opened(workdir) as alone:
        assert alone is not one


def test_a_ledger_that_cannot_be_opened_for_writing_can_still_be_read(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    with opened(workdir) as ledger:
        ledger.write(attempt())

    def fail(ledger):
        raise McrError("no space left")

    with workdir.locked():
        with opened(workdir, readonly=True) as ledger:
            assert ledger.count() == 1
        with monkeypatch.context() as patch, pytest.raises(McrError, match="no space"):
            patch.setattr(Ledger, "_enter_wal", fail)
            with opened(workdir):
                pass
        with opened(workdir, readonly=True) as ledger:
            assert ledger.count() == 1


def test_equal_questions_are_answered_by_the_newest_ok_attempt_of_the_version(ledger):
    attempts = [
        attempt(row(i), question="q", outcome=outcome, model_version=version)
        for i, (outcome, version) in enumerate(
            [(Outcome.OK, "a"), (Outcome.OK, "b"), (Outcome.MALFORMED, "b")]
        )
    ]
    ledger.write_all([[one] for one in attempts])
    assert ledger.equal(["q", "other"]) == {"q": attempts[1]}
    assert ledger.equal(["q"], version="a") == {"q": attempts[0]}
    assert ledger.equal(["q"], version="c") == {}


def test_equal_questions_are_found_by_an_index_and_not_by_reading_all_rows(ledger):
    steps = []
    for rows in (100, 1000):
        ledger.write_all([[attempt(row(rows + i), question=f"{rows}/{i}")] for i in range(rows)])
        steps.append(0)

        def count():
            steps[-1] += 1

        ledger._db.set_progress_handler(count, 10)  # every ten instructions of SQLite
        assert len(ledger.equal([f"{rows}/7", f"{rows}/8"])) == 2
        ledger._db.set_progress_handler(None, 0)
    assert steps[1] <= 2 * steps[0] + 20


def test_text_read_again_keeps_its_row_and_changes_its_verdict(ledger):
    ledger.declare(SCOPE, {row(): "d1"})
    ledger.write(attempt(text="yes", outcome=Outcome.MALFORMED, error="no JSON", reading="r/1"))
    stored = ledger.answers(SCOPE)[row()]
    changes = {"outcome": Outcome.OK, "verdict": {"same": True}, "error": "", "reading": "r/2"}
    ledger.reread([dataclasses.replace(stored, **changes)])
    assert ledger.answers(SCOPE)[row()] == dataclasses.replace(stored, **changes)
    assert ledger.count() == 1


def test_an_attempt_of_the_preferred_version_counts_before_newer_ones(ledger):
    ledger.declare(SCOPE, {row(i): "d1" for i in range(2)})
    for number, version in enumerate("ab", start=1):
        ledger.write(attempt(number=number, model_version=version))
    ledger.write(attempt(row(1), model_version="b"))
    versions = {v: [a.model_version for a in ledger.answers(SCOPE, v).values()] for v in "ab"}
    assert versions == {"a": ["a", "b"], "b": ["b", "b"]}


def damaged(path, column, value):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(f"UPDATE attempts SET {column} = {value}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("verdict", "'{\"same\": tr'"), ("outcome", "'GREAT'"), ("verdict", f"'{'[' * 10**6}'")],
)
@pytest.mark.parametrize("readonly", [True, False])
def test_a_damaged_row_is_one_line_that_names_file_and_row(tmp_path, column, value, readonly):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.declare(SCOPE, {row(7): "d1"})
        ledger.write(attempt(row(7), verdict={"same": True}))
    damaged(path, column, value)
    with Ledger(path, readonly=readonly) as ledger, pytest.raises(McrError) as raised:
        ledger.answers(SCOPE)
    line = str(raised.value)
    assert "diagnosis of case c1, model sft, sample 7, judge offline" in line and "\n" not in line
    assert str(path) in line and "DELETE FROM attempts WHERE id = 1" in line
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM attempts WHERE id = 1")  # as the line says
    with Ledger(path) as ledger:
        assert ledger.answers(SCOPE) == {row(7): None}


def test_text_that_is_not_utf_8_is_one_line(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.declare(SCOPE, {row(): "d1"})
        ledger.write(attempt(text="x"))
    damaged(path, "text", "CAST(x'FF' AS TEXT)")
    with Ledger(path) as ledger, pytest.raises(McrError, match="damaged"):
        ledger.answers(SCOPE)


@pytest.mark.parametrize("damage", [b"", b"no pages of a database at all" * 1000])
def test_a_damaged_file_names_what_saves_its_rows(tmp_path, damage):
    path = tmp_path / "a ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.declare(SCOPE, {row(i): "d1" for i in range(200)})
        ledger.write_all([[attempt(row(i), text="x" * 500)] for i in range(200)])
    content = path.read_bytes()
    path.write_bytes(damage or content[: len(content) // 2])
    with pytest.raises(McrError) as raised, Ledger(path, readonly=True) as ledger:
        ledger.answers(SCOPE)
    line = str(raised.value)
    assert f"sqlite3 '{path}' .recover | sqlite3 NEW" in line
    assert "again" not in line and "\n" not in line


def test_threads_write_at_the_same_time(ledger):
    failures = []

    def write(thread):
        try:
            for i in range(25):
                ledger.write(attempt(row(i, case=f"c{thread}")))
        except McrError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert ledger.count() == 200


def test_processes_write_at_the_same_time(tmp_path):
    path = tmp_path / "ledger.sqlite"
    writers = [writer(path, name, count=60) for name in ("one", "two")]
    acknowledged = [len(w.communicate(timeout=120)[0].split()) for w in writers]
    assert [w.returncode for w in writers] == [0, 0]
    with Ledger(path) as ledger:
        assert ledger.count() == sum(acknowledged) == 120


def test_a_new_file_is_shared_with_a_process_that_is_just_creating_it(tmp_path):
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")  # as while creating the tables; the mode is not WAL yet
        timer = threading.Timer(0.3, other.execute, ("ROLLBACK",))
        timer.start()
        with Ledger(path) as ledger:
            ledger.write(attempt())
            assert ledger.count() == 1
        timer.join()


def test_killed_process_leaves_every_acknowledged_row(tmp_path):
    path = tmp_path / "ledger.sqlite"
    process = writer(path, "killed", size=20_000)
    for _ in range(20):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = 20 + len(process.communicate(timeout=60)[0].split())
    assert process.returncode == -signal.SIGKILL
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Ledger(path) as ledger:
        assert ledger.count() >= acknowledged
        ledger.write(attempt())


def test_full_disk_is_one_line_and_earlier_rows_stay(mount_disk):
    path, written = mount_disk("1m") / "ledger.sqlite", 0
    ledger = Ledger(path)
    with pytest.raises(McrError, match="rows written before are kept") as raised:
        for i in range(1000):
            ledger.write(attempt(row(i), text="x" * 10_000))
            written += 1
    assert "\n" not in str(raised.value)
    assert 10 < written == ledger.count()
    ledger.close()
    with Ledger(path, readonly=True) as reopened:
        assert reopened.count() == written


def batch(state=BatchState.PLANNED, **more):
    items = (Item(((row(), "d1"), (row(1), "d2")), "q", 0, 99), Item(((row(2), "d3"),), "", 1, 9))
    return Batch(id="n", service="s/1", scope=SCOPE, items=items, state=state, **more)


def test_a_batch_is_read_as_it_was_put_and_is_gone_once_it_has_ended(ledger):
    planned = ledger.put_batch(batch())
    assert ledger.batches() == [planned]
    assert planned.rows == [(row(), "d1"), (row(1), "d2"), (row(2), "d3")]
    named = batch(BatchState.POLLING, name="b/1", submitted_at="2026-01-02T03:04:05+00:00")
    ledger.put_batch(named)
    assert ledger.batches() == [named]
    ledger.put_batch(batch(BatchState.DONE, name="b/1"))
    assert ledger.batches() == []


def test_the_rows_of_a_batch_and_its_end_are_written_together_or_not_at_all(ledger):
    ledger.put_batch(batch(BatchState.DOWNLOADING))
    ledger.write(attempt())
    with pytest.raises(McrError):  # the row is there already
        ledger.write_all([[attempt()]], batch=batch(BatchState.DONE))
    assert [b.state for b in ledger.batches()] == [BatchState.DOWNLOADING]
    ledger.write_all([[attempt(number=2)]], batch=batch(BatchState.DONE))
    assert ledger.batches() == [] and ledger.count() == 2


@pytest.mark.parametrize("schema", OLD)
def test_a_ledger_of_an_old_schema_has_no_batches_until_it_is_written(tmp_path, schema):
    path = shutil.copy(OLD[schema], tmp_path)
    with Ledger(path, readonly=True) as ledger:
        assert ledger.batches() == []
    with Ledger(path) as ledger:
        planned = ledger.put_batch(batch())
        assert ledger.batches() == [planned]
        assert (ledger.tried(row(), "d9"), ledger.count()) == (0, 2)


def test_a_damaged_batch_is_one_line(ledger):
    ledger.put_batch(batch())
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE batches SET rows = '[[1]]'")
    with pytest.raises(McrError, match="batch 'n' is damaged"):
        ledger.batches()
