"""`mcr judge` with Gemini, as a process: signals, quotas, missing verdicts and a wrong model."""

import contextlib
import json
import signal
import sqlite3

import pytest
from processes import read, rows, unfinished

pytestmark = pytest.mark.slow

GEMINI = "--config.judge.name=gemini"


@pytest.fixture
def keys(gemini):
    return {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}


def paid(gemini):
    return {call.text for call in gemini.calls}


@pytest.mark.parametrize(
    ("number", "times", "line"),
    [
        (signal.SIGTERM, 1, "mcr judge: stopped by SIGTERM; every answer that came is kept"),
        (signal.SIGINT, 1, "mcr judge: stopped by Ctrl-C; every answer that came is kept"),
        (signal.SIGINT, 2, "mcr judge: interrupted; the same command goes on from here"),
    ],
)
def test_a_signal_while_judging_keeps_the_answers_that_are_paid_for(
    mcr, workdir, gemini, keys, number, times, line
):
    unfinished(workdir, "judge")
    flags = (f"--workdir={workdir}", GEMINI, "--config.judge.concurrency=1")
    process = mcr.start("judge", *flags, **keys)
    reply = gemini._take

    def take(call):
        answer = reply(call)
        if len(gemini.calls) == 3:
            for _ in range(times):
                process.send_signal(number)
                gemini.wait(0.25)  # in flight as the signals come
        return answer

    gemini._take = take
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 75, out
    assert line in out and "Traceback" not in out
    assert ("Ctrl-C again stops at once" in out) is (number == signal.SIGINT)
    kept = {row["question"] for row in rows(workdir) if row["stage"] != "sample"}
    # The first signal waits for what is in flight, the second does not.
    assert len(paid(gemini)) == len(kept) + times - 1 == 3


def test_more_missing_verdicts_than_allowed_are_status_1_and_the_next_call_asks_for_them(
    mcr, workdir, gemini, keys
):
    unfinished(workdir, "judge")
    gemini.then(*(gemini.says("", finish="SAFETY") for _ in range(3)))
    flags = (f"--workdir={workdir}", GEMINI, "--config.judge.concurrency=1")
    line = mcr.fails(1, "eval", *flags, "--config.judge.attempts=1", **keys)
    assert "verdicts are missing, more than config.judge.unresolved_limit=0.01 allows" in line
    assert (workdir / "results.json").exists() and (workdir / "report.html").exists()
    missing = read(workdir / "results.json")["judge"]["verdicts"]
    assert any(stage["settled"] < stage["wanted"] for stage in missing.values())
    gemini.then(gemini.says("", finish="SAFETY"))
    allowed = ("--config.judge.attempts=1", "--config.judge.unresolved_limit=0.5")
    assert "unresolved" in mcr.ok("judge", *flags, *allowed, **keys)
    before = len(gemini.calls)
    assert "unresolved" not in mcr.ok("eval", *flags, **keys)
    assert len(gemini.calls) == before + 1


def test_a_daily_quota_is_status_75_with_the_time_of_its_reset(mcr, workdir, gemini, keys):
    unfinished(workdir, "judge")
    few = 4
    gemini.then(*(gemini.by_rule() for _ in range(few)))
    gemini.then(gemini.error(429, "quota", quota="GenerateRequestsPerDayPerProjectPerModel"))
    flags = (f"--workdir={workdir}", GEMINI, "--config.judge.concurrency=1")
    line = mcr.fails(75, "judge", *flags, **keys)
    assert "PerDay" in line and "in Los Angeles" in line
    assert len({row["question"] for row in rows(workdir) if row["question"]}) == few
    mcr.ok("judge", *flags, **keys)
    assert len(gemini.calls) == len(paid(gemini)) + 1


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("judge", (GEMINI, "--config.judge.model=gemini-0-none")),
        ("stitch", ("--config.stitch.model=gemini", "--config.stitch.gemini=gemini-0-none")),
    ],
)
def test_a_wrong_model_name_stays_neither_in_config_nor_in_manifest(
    mcr, workdir, gemini, keys, command, flags
):
    before = [read(workdir / name) for name in ("config.json", "manifest.json")]
    gemini.then(*(gemini.error(404, "no such model") for _ in range(8)))
    line = mcr.fails(1, command, f"--workdir={workdir}", *flags, **keys)
    assert "check that the model gemini-0-none exists" in line
    assert [read(workdir / name) for name in ("config.json", "manifest.json")] == before
    assert "gemini-0-none" not in json.dumps(before)
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")


def test_thinking_that_the_model_does_not_take_is_a_wrong_call(mcr, workdir, gemini, keys):
    flags = ("--config.judge.thinking=0", GEMINI)
    line = mcr.fails(2, "judge", f"--workdir={workdir}", *flags, **keys)
    assert "takes a level (minimal, low, medium, high, xhigh)" in line
    assert not gemini.calls


def test_a_damaged_verdict_is_one_line_that_names_its_row_for_every_stage_that_reads_it(
    mcr, workdir
):
    with contextlib.closing(sqlite3.connect(workdir / "ledger.sqlite")) as db, db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE attempts SET verdict = '{\"found\": [tr' WHERE stage = 'reasons'")
    for command in ("judge", "score", "report", "verify"):
        line = mcr.fails(1, command, f"--workdir={workdir}")
        assert "ledger.sqlite: row " in line and "reasons of case " in line
        assert ", judge offline" in line and "DELETE FROM attempts WHERE id = " in line
