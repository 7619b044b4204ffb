"""Batches from the command line: the same numbers, and a wait that can be stopped at any time."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from mcr_jax.cli.main import main
from mcr_jax.generate import batch
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.generate.open_batches import open_batches


def results(workdir):
    found = json.loads((workdir / "results.json").read_text())
    return {name: value for name, value in found.items() if name in ("models", "judge")}


def test_candidates_and_judge_in_batches_give_the_numbers_of_direct_calls(
    call, tmp_path, openai, gemini, monkeypatch
):
    monkeypatch.setattr(batch, "FEWEST", 2)
    openai.polls_before_end = gemini.polls_before_end = 0
    fields = {
        "model.folder": "",
        "sample.models": "o=openai:m,g=gemini:gemini-2.5-flash",
        "data.eval_cases": 4,
        "judge.name": "gemini",
        "score.resamples": 20,
    }
    assert call("eval", workdir=tmp_path / "direct", **fields) == (0, [])
    direct, calls = results(tmp_path / "direct"), (len(openai.calls), len(gemini.calls))
    batches = {"sample.batch": True, "judge.batch": True}
    found = call("eval", workdir=tmp_path / "batches", **fields, **batches)
    assert found == (0, []), found
    batched = results(tmp_path / "batches")
    paid = [of["judge"].pop("usage")["dollars"] for of in (direct, batched)]
    assert paid == [None, None] or paid[1] == pytest.approx(paid[0] / 2)
    for of in (direct, batched):
        for model in of["models"].values():
            model.pop("usage")
    assert batched == direct
    assert (len(openai.calls), len(gemini.calls)) == calls
    # Completions of g, then verdicts of o, whose answers g repeats; two cases share a diagnosis.
    assert [len(job.requests) for job in openai.jobs] == [8]
    assert [len(job.requests) for job in gemini.jobs] == [8, 3, 4]
    with Ledger(tmp_path / "batches" / "ledger.sqlite", readonly=True) as ledger:
        assert open_batches(ledger) == []


def test_a_file_of_completions_and_the_offline_judge_ignore_batch(call, tmp_path, clinic_cases):
    case = clinic_cases["test"][0].fingerprint
    made = tmp_path / "made.jsonl"
    made.write_text(json.dumps({"case": case, "text": "<answer>Sable gout</answer>"}) + "\n")
    fields = {"sample.models": f"m=file:{made}", "data.eval_cases": 1, "sample.n": 1}
    assert call("eval", **fields, **{"sample.batch": True, "judge.batch": True}) == (0, [])


@pytest.mark.promise("A run without `batch` asks for no row of an open batch")
@pytest.mark.parametrize("stage", ["sample", "judge"])
def test_a_direct_run_leaves_an_open_batch_alone_and_ends_with_75(
    call, tmp_path, openai, gemini, capsys, stage
):
    def wait(self, progress):
        raise KeyboardInterrupt

    fields = {
        "sample.models": "o=openai:m",
        "judge.name": "gemini",
        "data.eval_cases": 4,
        "sample.n": 3,
    }
    batched, server = {f"{stage}.batch": True}, {"sample": openai, "judge": gemini}[stage]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "FEWEST", 2)
        patch.setattr(batch._Run, "ended", wait)
        status, (line,) = call("eval", **fields, **batched)
    names = {"sample": "batch_1 goes", "judge": "batches/b1, batches/b2 go"}[stage]
    assert status == 75
    assert line == (
        f"mcr eval: interrupted; at the service {names} on, and the same command re-attaches"
    )
    assert main(["status", f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out.partition("open batch")[2]
    assert all(word in shown for word in (server.jobs[0].name, "submitted")), shown
    calls = len(openai.calls), len(gemini.calls)
    status, (line,) = call("eval", **fields)
    words = {"sample": "12 completions of o are", "judge": "16 verdicts of gemini:"}[stage]
    assert status == 75 and words in line, line
    assert f"in an open batch at the service: --config.{stage}.batch=True" in line
    assert (len(openai.calls), len(gemini.calls)) == calls
    server.polls_before_end = 0
    found = call("eval", **fields, **batched)
    assert found == (0, []), (found, call.out)
    assert len(server.jobs) == {"sample": 1, "judge": 2}[stage] and len(openai.calls) == calls[0]


@pytest.mark.slow
@pytest.mark.promise("SIGTERM and Ctrl-C end the wait with status 75")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_with_75_and_the_same_command_goes_on(
    openai, clinic_data, tmp_path, number
):
    fields = {
        "data.data_dir": clinic_data,
        "sample.models": "o=openai:m",
        "sample.batch": True,
        "sample.n": 5,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "mcr_jax", "sample", "--config=eval", f"--workdir={tmp_path}"]
    openai.polls_before_end = 10**9
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True) as process:
        while not (openai.jobs and openai.jobs[0].polls):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        (line,) = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 75
    assert re.search("; at the service batch_1 goes on, and the same command re-attaches$", line)
    openai.polls_before_end = 0
    subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        answers = ledger.answers(Scope("sample", "o"))
        assert len(answers) == ledger.count() == 20 and all(answers.values())
    assert len(openai.jobs) == 1 and openai.calls == []


@pytest.mark.parametrize("batches", [{"judge.batch": True}, {"sample.batch": True}])
def test_a_budget_cannot_limit_a_batch_and_says_so_before_the_first_call(
    call, tmp_path, openai, gemini, batches
):
    fields = {
        "model.folder": "",
        "sample.models": "o=openai:m",
        "data.eval_cases": 1,
        "sample.n": 1,
    }
    status, (line,) = call(
        "eval", **fields, **batches, **{"judge.name": "gemini", "budget.requests": 5}
    )
    assert status == 2 and "config.budget" in line and "batch" in line
    assert not openai.calls and not gemini.calls
