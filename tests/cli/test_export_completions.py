"""`mcr export-completions`: completions of a ledger as the file that file: reads."""

import json

import pytest

from mcr_jax.completion import render
from mcr_jax.data.dataset import load_cases
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.generate.recorded import write_completions

THOUGHTS = "It hums, and there is no frost."


def results(workdir):
    """Returns the numbers by model; the cost of a file is none."""
    models = json.loads((workdir / "results.json").read_text())["models"]
    return {name: {k: v for k, v in of.items() if k != "usage"} for name, of in models.items()}


def _joined(text):
    return " ".join(text.split())


@pytest.fixture
def test_cases(clinic_data):
    return load_cases(clinic_data, "test")[:2]


def test_the_file_of_a_service_gives_the_same_numbers_in_another_workdir(
    call, tmp_path, openai, test_cases
):
    first = test_cases[0]
    trace = " ".join(first.statements)
    openai.then(
        openai.says(render(trace, first.final_diagnosis)),
        openai.says(f"<think>\n{THOUGHTS}", finish="length"),
        openai.says("", finish="content_filter"),
        openai.says(f"{THOUGHTS} No idea. \u2028"),
    )
    fields = {"score.resamples": 20, "sample.concurrency": 1, "judge.recall_samples": 2}
    assert call("eval", workdir=tmp_path / "a", **{"sample.models": "o=openai:m", **fields})[0] == 0
    out = tmp_path / "made.jsonl"
    assert call(
        "export-completions", workdir=tmp_path / "a", **{"sample.models": "o=openai:m"}, out=out
    ) == (0, [])
    lines = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    assert sorted(line["outcome"] for line in lines) == ["BLOCKED", "OK", "OK", "TRUNCATED"]
    assert {(line["case"], line["pmcid"]) for line in lines} == {
        (case.fingerprint, case.pmcid) for case in test_cases
    }
    assert {line["model_version"] for line in lines} == {"loopback-1"}
    again = {"sample.models": f"o=file:{out}", **fields}
    assert call("eval", workdir=tmp_path / "b", **again)[0] == 0
    assert results(tmp_path / "b") == results(tmp_path / "a")
    assert results(tmp_path / "a")["o"]["outcomes"]["BLOCKED"] == 1
    with Ledger(tmp_path / "b" / "ledger.sqlite", readonly=True) as ledger:
        held = ledger.answers(Scope("sample", "o")).values()
    assert {attempt.model_version for attempt in held} == {"loopback-1"}
    assert sorted(a.text for a in held) == sorted(line["text"] for line in lines)


def test_a_missing_completion_is_counted_and_not_written(call, tmp_path, test_cases):
    made, out = tmp_path / "made.jsonl", tmp_path / "out.jsonl"
    line = {"case": test_cases[0].pmcid, "sample": 1, "text": render(THOUGHTS, "x")}
    made.write_text(json.dumps(line) + "\n")
    fields = {"sample.models": f"made=file:{made}"}
    few = "(config.sample.n=2 wants 2 per case, the file has 1 at most)"
    for _ in range(2):  # the second call says it again
        assert call("sample", **fields) == (0, [])
        assert f"made: 1 of 4 completions are in {made}, 3 missing {few}" in _joined(call.out)
    assert call("export-completions", out=out, model="made", **fields) == (0, [])
    assert "3 more are wanted and not there; " in call.out and "did not have them" in call.out
    assert "`mcr sample`" not in call.out
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["sample"] == 1
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        assert write_completions(ledger, "made", (), tmp_path / "again.jsonl") == (1, 3)
    assert "pmcid" not in json.loads((tmp_path / "again.jsonl").read_text())


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ({"out": ""}, 2, ["--out=FILE.jsonl is missing"]),
        ({"model": "z"}, 2, ["--model=z", "made, base"]),
        ({"model": ""}, 2, ["--model=NAME is missing", "made, base"]),
        ({"model": "base"}, 1, ["no completions of model 'base'", "mcr sample"]),
        ({"out": "made.jsonl/x"}, 2, ["--out=made.jsonl/x: there is no folder made.jsonl"]),
        ({"out": "w"}, 2, ["--out=w is a folder"]),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    call, tmp_path, monkeypatch, test_cases, flags, status, words
):
    monkeypatch.chdir(tmp_path)
    line = {"case": test_cases[0].fingerprint, "text": render(THOUGHTS, "x")}
    (tmp_path / "made.jsonl").write_text(json.dumps(line) + "\n")
    call("sample", workdir="w", **{"sample.models": "made=file:made.jsonl"})
    both = {"sample.models": "made=file:made.jsonl,base"}
    flags = {"out": "out.jsonl", "model": "made", **flags}
    found, (line,) = call("export-completions", workdir="w", **flags, **both)
    assert found == status and all(word in line for word in words), line


def test_every_settled_outcome_can_be_read_back(call, tmp_path, test_cases):
    made = tmp_path / "made.jsonl"
    outcomes = [outcome for outcome in Outcome if outcome.settled]
    lines = [
        {"case": test_cases[0].fingerprint, "text": "", "outcome": outcome} for outcome in outcomes
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"sample.models": f"made=file:{made}", "data.eval_cases": 1, "sample.n": len(outcomes)}
    assert call("eval", **fields)[0] in (0, 1)
    counts = results(tmp_path)["made"]["outcomes"]
    assert counts == {
        "no_answer": 1,
        "TRUNCATED": 1,
        "BLOCKED": 1,
        "MALFORMED": 1,
        "prompt_too_long": 1,
    }
