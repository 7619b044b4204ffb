"""Money from one command: forecast, budget, usage in the results, the report and `mcr status`."""

import json
import subprocess
import sys
import time

import pytest

from mcr_jax.cli.main import main
from mcr_jax.generate import spending
from mcr_jax.generate.ledger import Ledger

PRICES = """
[[price]]
service = "openai"
model = "*"
input = 1.0
output = 10.0
cached = 0.1
valid_from = 2020-01-01
source = "invented"
"""
OF_CALL = 8 * 1e-6 + 3 * 0.1e-6 + 12 * 10e-6  # 11 tokens in, 3 of them cached, and 12 out
JUDGED = {"judge.name": "openai", "judge.model": "j", "judge.max_tokens": 500}


@pytest.fixture
def mcr(tmp_path, clinic_data, capsys):
    """Runs a command without a model of this machine; returns status, stdout and stderr lines."""
    (tmp_path / "prices.toml").write_text(PRICES)

    def run(command, workdir="w", **fields):
        fields = {
            "data.data_dir": clinic_data,
            "data.eval_cases": 2,
            "sample.n": 3,
            "sample.max_tokens": 50,
            "sample.models": "o=openai:m",
            "score.resamples": 20,
            "prices": tmp_path / "prices.toml",
            **fields,
        }
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        capsys.readouterr()
        status = main([command, "--config=eval", f"--workdir={tmp_path / workdir}", *flags])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


def shown(capsys, workdir, *flags):
    capsys.readouterr()
    status = main(["status", f"--workdir={workdir}", *flags])
    out = capsys.readouterr().out
    return status, [" ".join(line.split()) for line in out.splitlines()]


@pytest.mark.promise(
    "Before the first call to a service, each stage prints one line: calls, tokens in and out, and "
    "dollars."
)
@pytest.mark.promise("with the price rows in `prices`; the report has one line.")
def test_the_forecast_is_one_line_before_the_first_call_and_the_results_say_the_cost(
    mcr, openai, tmp_path
):
    status, lines, _ = mcr("eval", **JUDGED)
    assert status == 0
    of_sample, of_judge = (line for line in lines if "tokens in (" in line)
    assert of_sample.startswith("sample: openai:m: 6 calls, about ")
    assert "at most 300 out (the token limits)" in of_sample
    # Six equal answers to two cases: two diagnoses; a trace of each case is judged.
    assert of_judge.startswith("judge: openai:j: 4 calls, about ")
    assert "at most 2,000 out" in of_judge
    assert len(openai.calls) == 10
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    assert found["schema"] == 1
    tokens = {"prompt_tokens": 11, "output_tokens": 12, "cached_tokens": 3}
    for usage, calls in ((found["models"]["o"]["usage"], 6), (found["judge"]["usage"], 4)):
        dollars = usage.pop("dollars")
        assert usage == {"requests": calls, **{k: calls * v for k, v in tokens.items()}}
        assert dollars == pytest.approx(calls * OF_CALL)
    (row,) = found["prices"]
    assert (row["model"], row["source"], row["own"]) == ("*", "invented", True)
    cost = f"Cost: 10 calls, 110 tokens in, 120 out, {10 * OF_CALL:.4f} USD."
    assert cost in (tmp_path / "w" / "report.html").read_text()
    assert any(cost in line for line in lines)


def test_the_forecast_of_a_second_run_uses_the_calls_of_the_first(mcr, openai):
    mcr("sample", **{"sample.n": 1})
    _, lines, _ = mcr("sample")
    (line,) = (line for line in lines if line.startswith("sample: openai:m: "))
    assert "4 calls, about 44 tokens in (the mean of 2 recorded calls), about 48 out" in line
    _, lines, _ = mcr("sample")
    assert not any("tokens in" in line for line in lines)


def test_completions_that_a_changed_field_replaces_are_counted_before_they_are_paid_again(
    mcr, openai
):
    fields = {"sample.models": "o=openai:gpt-4o-mini"}
    _, lines, _ = mcr("sample", **fields)
    assert not any("anew" in line for line in lines)
    _, lines, _ = mcr("sample", **fields, **{"sample.n": 4})
    assert not any("anew" in line for line in lines)
    fields |= {"sample.temperature": 0.1, "budget.requests": 9, "sample.n": 4}
    status, lines, _ = mcr("sample", **fields)
    told = "sample: o: config.sample.temperature changed: 8 completions are drawn anew"
    assert status == 75 and lines.index(told) == 0
    assert "config.budget.requests=9 may not suffice" in lines[1]
    fields |= {"budget.requests": 0, "sample.models": "o=openai:other"}
    _, lines, _ = mcr("sample", **fields)
    assert lines[0].endswith(" changed: 8 completions are drawn anew")
    _, lines, _ = mcr("sample", **fields)
    assert not any("anew" in line for line in lines)


@pytest.mark.promise(
    "A call that does not fit waits for those in flight; then the run ends with exit status 75 and "
    "one line that names the field to raise."
)
@pytest.mark.promise("A run that resumes counts what earlier runs have spent.")
@pytest.mark.parametrize("kind", ["openai", "ours"])
def test_a_spent_budget_ends_with_status_75_and_a_raised_one_goes_on(mcr, openai, tmp_path, kind):
    asked = {"sample.models": f"o={kind}:m", **JUDGED, "judge.name": kind}
    asked["endpoints"] = f"ours={openai.url}"
    for limit, status, calls in ((4, 75, 4), (4, 75, 4), (8, 75, 8), (10, 0, 10)):
        found, _, err = mcr("eval", **asked, **{"budget.requests": limit})
        assert (found, len(openai.calls)) == (status, calls)
        if status:
            (line,) = err
            assert line.startswith("mcr eval: ") and f"{limit} requests of config.budget" in line
            assert "raise config.budget.requests and call again" in line
    assert main(["verify", f"--workdir={tmp_path / 'w'}"]) == 0


@pytest.mark.promise("`config.budget.dollars` is refused where the price of a service is unknown.")
@pytest.mark.parametrize("command", ["eval", "sample"])
def test_dollars_without_a_price_and_a_wrong_file_are_told_before_a_call(
    mcr, openai, tmp_path, command
):
    for fields, words in (
        ({"prices": "", "budget.dollars": 1.0}, "price of openai:m is unknown"),
        (
            {"sample.models": "o=ours:m", "endpoints": "ours=http://h/v1", "budget.dollars": 1.0},
            "price of ours:m is unknown",
        ),
        (
            {"judge.name": "ours", "endpoints": "ours=http://h/v1", "budget.dollars": 1.0},
            "price of ours:gemini-3.5-flash-lite is unknown",
        ),
        ({"prices": tmp_path / "gone.toml"}, "gone.toml"),
        ({"prices": tmp_path / "gone.toml", "sample.models": "base"}, "gone.toml"),
        ({"budget.dollars": -1.0}, "config field budget.dollars"),
    ):
        if command == "sample" and (
            fields.get("sample.models") == "base" or "judge.name" in fields
        ):
            continue  # it asks no service
        status, _, (line,) = mcr(command, **{"judge.name": "offline", **fields})
        assert status == 2 and words in line, line
    assert not openai.calls


def test_the_calls_of_a_named_endpoint_count_across_a_kill(mcr, openai, tmp_path, clinic_data):
    mcr("sample", **{"data.eval_cases": 4})
    fields = {
        "data.data_dir": clinic_data,
        "data.eval_cases": 4,
        "sample.n": 3,
        "sample.models": "o=openai:m",
        "endpoints": f"ours={openai.url}",
        "judge.name": "ours",
        "judge.model": "j",
        "judge.concurrency": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "mcr_jax", "judge", "--config=eval"]
    openai.gather(2)
    with subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'w'}", *flags], stdout=subprocess.DEVNULL
    ) as killed:
        while len(openai.calls) < 12 + 2:
            assert killed.poll() is None
            time.sleep(0.001)
        killed.kill()
    openai.gather(1)

    def calls():
        with Ledger(tmp_path / "w" / "ledger.sqlite", readonly=True) as ledger:
            parts = spending.read(ledger)
        return {
            service: sum(p.requests for p in parts if p.service == service)
            for service in ("openai:m", "ours:j")
        }

    limit = 12 + calls()["ours:j"] + 1
    status, _, (line,) = mcr("judge", **fields, **{"budget.requests": limit})
    assert status == 75 and f"{limit} requests of config.budget.requests={limit}" in line
    assert calls() == {"openai:m": 12, "ours:j": limit - 12}


def test_the_writer_and_the_judge_of_stitching_share_one_budget(
    mcr, gemini, tmp_path, tiny_folder, capsys
):
    fields = {
        "model.folder": tiny_folder,
        "stitch.model": "gemini",
        "stitch.judge": "gemini",
        "stitch.attempts": 1,
    }
    gemini.then(*[gemini.says("It hums, and there is no frost on the tongue.")] * 44)
    status, lines, (line,) = mcr("stitch", **fields, **{"budget.requests": 50})
    assert status == 75 and "50 requests of config.budget.requests=50 are spent" in line
    writer, judge = (line for line in lines if "tokens in (" in line)
    lite = "stitch: gemini:gemini-3.5-flash-lite: "
    assert writer.startswith(f"{lite}44 calls, ") and judge.startswith(f"{lite}44 calls, ")
    assert len(gemini.calls) == 50
    _, lines = shown(capsys, tmp_path / "w")
    assert any(line.startswith("stitch gemini:") and "44 of 44 0 44 " in line for line in lines)
    assert any(line.startswith("distortion gemini:") and "6 of 44 38 6 " in line for line in lines)
    assert mcr("stitch", **fields)[0] == 0
    assert len(gemini.calls) == 88


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r["models"]["o"]["usage"].update(requests=5), "models.o.usage.requests is 5"),
        (lambda r: r["judge"]["usage"].update(dollars=0.0), "judge.usage.dollars is 0.0"),
        (
            lambda r: r["judge"]["usage"].update(requests=10**400),
            "field judge.usage.requests is not a number",
        ),
        (lambda r: r["models"]["o"].pop("usage"), "models.o.usage is 'absent'"),
        (lambda r: r["prices"][0].update(output=1.0), "usage.dollars is"),
        (lambda r: r["prices"].clear(), "recomputed None"),
        (lambda r: r["prices"][0].update(valid_from="soon"), "field prices: field valid_from"),
        (lambda r: r["prices"].append(3), "field prices[1] is not an object"),
    ],
)
def test_verify_finds_a_usage_that_was_changed(mcr, openai, tmp_path, capsys, change, named):
    mcr("eval", **JUDGED)
    path = tmp_path / "w" / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))
    (tmp_path / "prices.toml").unlink()  # verify needs the rows in results.json only
    assert main(["verify", f"--workdir={tmp_path / 'w'}"]) == 1
    captured = capsys.readouterr()
    assert named in captured.out + captured.err and "Traceback" not in captured.err


def test_results_from_before_usage_are_verified_shown_and_reported(mcr, openai, tmp_path, capsys):
    mcr("eval", **JUDGED)
    path = tmp_path / "w" / "results.json"
    results = json.loads(path.read_text())
    del results["prices"], results["judge"]["usage"], results["models"]["o"]["usage"]
    path.write_text(json.dumps(results))
    assert main(["verify", f"--workdir={tmp_path / 'w'}"]) == 0
    assert main(["report", f"--workdir={tmp_path / 'w'}"]) == 0
    assert "Cost:" not in (tmp_path / "w" / "report.html").read_text()


@pytest.mark.promise(
    "`mcr status` lists rows answered, wanted and open of each model and judge, with calls, tokens "
    "and dollars."
)
def test_status_counts_what_is_wanted_answered_and_open_and_what_was_paid(
    mcr, openai, tmp_path, capsys
):
    openai.then(*[openai.says("<answer>x</answer>")] * 5, openai.error(401, "no"))
    status, _, _ = mcr("sample", **{"sample.concurrency": 1})
    assert status == 1
    before = {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()}
    status, lines = shown(capsys, tmp_path / "w", "--config.budget.requests=9")
    assert status == 0
    assert f"sample o 5 of 6 1 5 115 {5 * OF_CALL:.5f}" in lines
    assert f"all 5 of 6 1 5 115 {5 * OF_CALL:.5f}" in lines
    assert "config.budget: 5 of 9 calls" in lines
    assert {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()} == before
    mcr("eval", **JUDGED)
    _, lines = shown(capsys, tmp_path / "w")
    assert any(line.startswith("diagnosis o 6 of 6 0 ") for line in lines)
    assert "by openai:j" in lines
    _, lines = shown(capsys, tmp_path / "w", "--config.judge.version=another")
    assert any(line.startswith("diagnosis o 0 of 6 6 ") for line in lines)
    _, lines = shown(capsys, tmp_path / "w", "--config.prices=")
    assert any(line.startswith("sample o 6 of 6 0 6 138 unknown") for line in lines)


@pytest.mark.parametrize("workdir", ["gone", "empty"])
def test_status_without_a_workdir_or_a_ledger_is_one_line(tmp_path, capsys, workdir):
    (tmp_path / "empty").mkdir()
    status = main(["status", "--config=eval", f"--workdir={tmp_path / workdir}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert {"gone": (2, "no such workdir"), "empty": (1, "no ledger here")}[workdir] == (
        status,
        next(words for words in ("no such workdir", "no ledger here") if words in line),
    )
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow
def test_status_works_while_another_mcr_is_at_work(openai, clinic_data, tmp_path, capsys):
    fields = {
        "data.data_dir": clinic_data,
        "sample.models": "o=openai:m",
        "sample.n": 10,
        "sample.concurrency": 4,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "mcr_jax", "sample", "--config=eval", f"--workdir={tmp_path}"]
    openai.then(*[openai.says("x")] * 20, *[openai.hangs()] * 4)
    with subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL) as at_work:
        while len(openai.calls) < 24:
            assert at_work.poll() is None
            time.sleep(0.001)
        for _ in range(20):
            status, lines = shown(capsys, tmp_path)
            assert status == 0 and any(line.startswith("sample o ") for line in lines)
        at_work.kill()
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        assert ledger.count() <= 20
