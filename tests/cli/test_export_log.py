"""`mcr export-log`: a log that the real inspect_ai reads, with the numbers of results.json."""

import dataclasses
import json
import math
import zipfile

import harness_python
import pytest

from mcr_jax.adapters.inspect_log import FOUND, VERIFIED
from mcr_jax.completion import render
from mcr_jax.data.dataset import load_cases
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Ledger, Scope

THOUGHTS = "It hums, and there is no frost."
SAMPLES = 5


@pytest.fixture
def measured(call, tmp_path, clinic_data):
    """A workdir with five completions of three cases: right, wrong, cut off, blocked, missing."""
    made, rows = tmp_path / "made.jsonl", []
    for number, case in enumerate(load_cases(clinic_data, "test")[:3]):
        statements = case.statements[: number + 1]
        right = {"text": render(" ".join(statements), case.final_diagnosis)}
        wrong = {"text": render(THOUGHTS, "Sable gout")}
        cut = {"text": f"<think>\n{THOUGHTS} <b>\u2028 ß", "outcome": "TRUNCATED"}
        blocked = {"text": "", "outcome": "BLOCKED"}
        of_case = [[right, wrong, right, cut, wrong], [right, blocked, wrong, cut], [cut, wrong]]
        rows += [
            {"case": case.fingerprint, "sample": sample, **row}
            for sample, row in enumerate(of_case[number])
        ]
    made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "sample.models": f"made=file:{made}",
        "sample.n": SAMPLES,
        "data.eval_cases": 3,
        "judge.recall_samples": 2,
        "score.resamples": 20,
    }
    assert call("eval", **fields)[0] == 0
    return tmp_path, fields


@pytest.mark.parametrize("form", ["eval", "json"])
def test_inspect_ai_reads_the_log_and_computes_the_same_numbers(call, measured, form):
    workdir, fields = measured
    path, out = workdir / f"made.{form}", workdir / "read.json"
    assert call("export-log", out=path, **fields) == (0, [])
    assert "with the verdicts of offline" in call.out
    read = harness_python.run("read_log.py", out, path, out, "mean", f"pass_at_{SAMPLES}")
    ours = json.loads((workdir / "results.json").read_text())["models"]["made"]
    wanted = {
        ("diagnosis", "mean"): ours["accuracy"]["1"],
        ("diagnosis", f"pass_at_{SAMPLES}"): ours["accuracy"][str(SAMPLES)],
        (FOUND, "mean"): ours[FOUND],
        (VERIFIED, "mean"): ours[VERIFIED],
    }
    for scores in (read["written"], read["again"]):
        found = {(score["name"], score["reducer"]): score for score in scores}
        for key, metric in wanted.items():
            (value,) = (m["value"] for m in found[key]["metrics"].values())
            assert math.isclose(value, metric["value"]), key
            assert found[key]["scored_samples"] == metric["resolved"]
    assert 0 < ours["accuracy"]["1"]["value"] < 1 and 0 < ours[FOUND]["value"] < 1
    assert len(read["samples"]) == 11 and read["one"]
    assert sorted(map(tuple, read["summaries"])) == sorted(
        (sample["id"], sample["epoch"]) for sample in read["samples"]
    )
    stops = [sample["stop"] for sample in read["samples"]]
    assert (stops.count("max_tokens"), stops.count("content_filter")) == (3, 1)
    given = {json.loads(line)["text"] for line in (workdir / "made.jsonl").read_text().splitlines()}
    assert {sample["text"] for sample in read["samples"]} == given
    assert read["header"]["model"] == "none/made" and read["header"]["config"]["epochs"] == SAMPLES


def test_a_call_that_failed_is_an_error_in_the_log_and_unscored(call, measured):
    workdir, fields = measured
    with Ledger(workdir / "ledger.sqlite") as ledger:
        answers = ledger.answers(Scope("sample", "made"))
        row = next(row for row, attempt in answers.items() if attempt is None)
        other = next(a for r, a in answers.items() if a is not None and r.case == row.case)
        failed = {"outcome": Outcome.INFRA_ERROR, "text": "", "error": "no reply in 60 s"}
        ledger.write(dataclasses.replace(other, row=row, **failed))
    path, out = workdir / "made.eval", workdir / "read.json"
    assert call("export-log", out=path, **fields) == (0, [])
    read = harness_python.run("read_log.py", out, path, out, "mean")
    assert len(read["samples"]) == 12
    (sample,) = (s for s in read["samples"] if s["error"])
    assert sample["error"] == "no reply in 60 s" and math.isnan(
        sample["scores"]["diagnosis"]["value"]
    )


def test_the_same_ledger_gives_the_same_log(call, measured):
    workdir, fields = measured
    texts = []
    for name in ("a.json", "b.json"):
        assert call("export-log", out=workdir / name, **fields) == (0, [])
        texts.append((workdir / name).read_text())
    assert texts[0] == texts[1]


def test_the_two_formats_hold_the_same(call, measured):
    workdir, fields = measured
    for name in ("log.json", "log.eval"):
        assert call("export-log", out=workdir / name, **fields) == (0, [])
    whole = json.loads((workdir / "log.json").read_text())
    with zipfile.ZipFile(workdir / "log.eval") as parts:
        header = json.loads(parts.read("header.json"))
        for sample in whole.pop("samples"):
            part = parts.read(f"samples/{sample['id']}_epoch_{sample['epoch']}.json")
            assert json.dumps(json.loads(part)) == json.dumps(sample)  # NaN is not equal to NaN
    assert json.dumps(header) == json.dumps(whole)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"out": ""}, 2, ["--out=FILE.eval is missing"]),
        ({"out": "log.txt"}, 2, ["log.txt", ".eval or .json"]),
        ({"model": "z"}, 2, ["--model=z", "made"]),
        ({"out": "gone/log.eval"}, 2, ["--out=gone/log.eval: there is no folder gone"]),
        ({"judge.models": "other=offline"}, 1, ["is of judge offline", "now names other"]),
        ({"data.eval_split": "val"}, 1, ["15 of 15 completions", "split val"]),
    ],
)
def test_what_cannot_be_written_is_one_line(call, measured, monkeypatch, fields, status, words):
    workdir, before = measured
    monkeypatch.chdir(workdir)
    found, (line,) = call("export-log", **{"out": "log.eval", **before, **fields})
    assert found == status and all(word in line for word in words), line
    assert not (workdir / "log.eval").exists()
