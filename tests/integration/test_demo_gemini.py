"""Demo with Gemini as the judge, over HTTP, and without a key."""

import pytest
from processes import is_schema_1, read, rows, unfinished

pytestmark = pytest.mark.slow


def test_without_a_key_nothing_starts_and_the_key_is_named(mcr, workdir, tiny):
    line = mcr.fails(2, "demo", "--workdir=w", "--judge=gemini", *tiny)
    assert "GEMINI_API_KEY" in line
    assert not (mcr.folder / "w" / "data").exists()
    before = rows(workdir)
    unfinished(workdir)
    for command in ("judge", "eval"):
        flags = (f"--workdir={workdir}", "--config.judge.name=gemini")
        assert "GEMINI_API_KEY" in mcr.fails(2, command, *flags)
    assert len(rows(workdir)) == len(before)


def test_a_finished_demo_is_judged_anew_by_gemini_beside_the_old_verdicts(
    mcr, workdir, tiny, gemini
):
    keys = {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    offline = len(rows(workdir))
    command = ("demo", f"--workdir={workdir}", "--judge=gemini", *tiny)
    out = mcr.ok(*command, **keys)
    assert "train: nothing to do" in out and "judge: gemini:" in out
    results = read(workdir / "results.json")
    is_schema_1(results)
    assert results["judge"]["name"].startswith("gemini:")
    verdicts = results["judge"]["verdicts"]
    assert verdicts["reasons"]["settled"] == verdicts["reasons"]["wanted"] > 0
    assert len(gemini.calls) == len({call.text for call in gemini.calls})  # none is paid twice
    assert len(rows(workdir)) == offline + sum(stage["wanted"] for stage in verdicts.values())
    assert results["judge"]["name"] in (workdir / "report.html").read_text()

    calls = len(gemini.calls)
    assert "nothing to do" in mcr.ok(*command, **keys)
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")
    assert len(gemini.calls) == calls


def test_no_key_is_ever_written_into_a_workdir(mcr, workdir, tiny, gemini):
    unfinished(workdir)
    keys = {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    gemini.then(gemini.error(400, f"API key not valid: {gemini.key}"))
    mcr("eval", f"--workdir={workdir}", "--config.judge.name=gemini", **keys)
    assert gemini.calls
    for path in workdir.rglob("*"):
        assert not path.is_file() or gemini.key.encode() not in path.read_bytes(), path
