"""Any model as the candidate: a folder, services and a file of completions, side by side."""

import json
import shutil
import subprocess
import sys

import pytest

from mcr_jax import console
from mcr_jax.cli.main import main
from mcr_jax.completion import render
from mcr_jax.generate.ledger import Ledger, Scope

THOUGHTS = "It hums, and there is no frost."


@pytest.fixture
def test_cases(clinic_cases):
    return clinic_cases["test"][:2]


def results(workdir):
    return json.loads((workdir / "results.json").read_text())["models"]


def recorded(workdir, model, path):
    """Writes the completions of a model in the ledger to a file."""
    with Ledger(workdir / "ledger.sqlite", readonly=True) as ledger:
        rows = [
            {"case": row.case, "sample": row.sample, "text": a.text, "outcome": a.outcome}
            for row, a in ledger.answers(Scope("sample", model)).items()
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))


def test_a_folder_two_services_and_a_file_are_measured_by_one_command(
    call, tmp_path, tiny_folder, openai, gemini, test_cases, monkeypatch
):
    right = [case.final_diagnosis for case in test_cases]
    openai.then(*[openai.says(f"<answer>{r}</answer>", thoughts=THOUGHTS) for r in right * 2])
    made = tmp_path / "made.jsonl"
    lines = [
        {"case": case.pmcid or case.fingerprint, "reasoning": THOUGHTS, "answer": "Sable gout"}
        for case in test_cases
        for _ in range(2)
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = f"tiny=hf:{tiny_folder},o=openai:m,gemini:gemini-2.5-flash,made=file:{made}"
    fields = {"model.folder": "", "sample.models": models, "score.resamples": 20}
    assert call("eval", **fields) == (0, [])
    found = results(tmp_path)
    assert list(found) == ["gemini:gemini-2.5-flash", "made", "o", "tiny"]
    assert all(sum(model["outcomes"].values()) == 4 for model in found.values())
    assert found["gemini:gemini-2.5-flash"]["outcomes"] == {"OK": 4}
    assert found["made"]["accuracy"]["1"]["value"] == 0.0
    assert "gemini:gemini-2.5-flash" in (tmp_path / "report.html").read_text()
    # Done: neither keys nor services are needed.
    calls = len(openai.calls) + len(gemini.calls)
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "report.html").unlink()
    assert call("eval", **fields) == (0, [])
    assert len(openai.calls) + len(gemini.calls) == calls
    # The same completions from a file give the same numbers.
    recorded(tmp_path, "o", tmp_path / "o.jsonl")
    again = {**fields, "sample.models": f"o=openai:m,again=file:{tmp_path / 'o.jsonl'}"}
    assert call("eval", **again) == (0, [])
    found = results(tmp_path)
    paid, free = found["o"].pop("usage"), found["again"].pop("usage")
    assert (paid["requests"], free["requests"]) == (4, 0)
    assert found["again"] == found["o"]


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("x=openai:m", 2, ["OPENAI_API_KEY"]),
        ("x=gemini:m", 2, ["GEMINI_API_KEY"]),
        ("x=hf:gone", 2, ["gone", "no such folder"]),
        ("x=file:gone.jsonl", 1, ["gone.jsonl", "cannot read"]),
        ("x=file:bad.jsonl", 1, ["bad.jsonl, line 2", "not JSON"]),
        ("x=file:half.jsonl", 1, ["half.jsonl, line 1", "field text is missing"]),
        ("x=file:part.jsonl", 1, ["part.jsonl, line 1", "field sample is not an integer"]),
        ("x=file:other.jsonl", 1, ["other.jsonl", "no completion is of a case"]),
        ("x=file:twice.jsonl", 1, ["twice.jsonl, line 2", "sample 0", "stands twice"]),
        ("x=file:bytes.jsonl", 1, ["bytes.jsonl", "can't decode byte 0xff"]),
        ("x=file:empty.jsonl", 1, ["empty.jsonl", 'field "case"']),
        ("x=file:.", 1, [".: cannot read completions: Is a directory"]),
        ("x=hf:.", 2, ["holds no config.json"]),
        ("x=hf:no_tokenizer", 1, ["no_tokenizer", "cannot read the tokenizer"]),
        ("x=hf:no_template", 1, ["no_template", "no chat template", "chat_template.jinja"]),
        ("x=hf:no_weights", 1, ["no_weights", "neither model.safetensors nor"]),
        ("sft@300", 1, ["no checkpoint here"]),
        ("x=vllm:m", 2, ["no model 'x=vllm:m'", "openai:"]),
        ("x=base,x=sft", 2, ["'x' twice"]),
    ],
)
def test_what_cannot_work_is_told_before_the_first_completion(
    call, tmp_path, monkeypatch, test_cases, tiny_folder, model, status, words
):
    monkeypatch.chdir(tmp_path)
    case = test_cases[0].fingerprint
    line = f'{{"case": "{case}", "sample": 0, "text": "x"}}\n'
    (tmp_path / "twice.jsonl").write_text(line * 2)
    (tmp_path / "bytes.jsonl").write_bytes(line.encode() + b"\xff")
    (tmp_path / "empty.jsonl").write_text("\n")
    without = {"no_tokenizer": "tokenizer.*", "no_weights": "*.safetensors", "no_template": "-"}
    for name, pattern in without.items():
        if f":{name}" in model:
            folder = shutil.copytree(tiny_folder, tmp_path / name)
            for path in folder.glob(pattern):
                path.unlink()
    if "no_template" in model:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "bad.jsonl").write_text(f'{{"case": "{case}", "text": "x"}}\n{{')
    (tmp_path / "half.jsonl").write_text(f'{{"case": "{case}", "reasoning": "x"}}\n')
    (tmp_path / "part.jsonl").write_text(f'{{"case": "{case}", "sample": 0.5, "text": "x"}}\n')
    (tmp_path / "other.jsonl").write_text('{"case": "of nobody", "text": "x"}\n')
    found, (line,) = call("eval", workdir="w", **{"sample.models": f"base,{model}"})
    assert found == status and all(word in line for word in words), line
    assert not list(tmp_path.glob("w/ledger.sqlite"))


def test_another_file_under_the_same_name_replaces_its_completions(call, tmp_path, test_cases):
    made, right = tmp_path / "made.jsonl", test_cases[0].final_diagnosis
    for answer, accuracy in (("Sable gout", 0.0), (right, 1.0)):
        line = {"case": test_cases[0].fingerprint, "text": render(THOUGHTS, answer)}
        made.write_text(json.dumps(line) + "\n")
        fields = {"sample.models": f"made=file:{made}", "sample.n": 1, "data.eval_cases": 1}
        assert call("eval", **fields) == (0, [])
        assert results(tmp_path)["made"]["accuracy"]["1"]["value"] == accuracy


def test_a_completion_that_the_file_lacks_is_missing_not_wrong(
    call, tmp_path, test_cases, monkeypatch
):
    printed = []
    monkeypatch.setattr(console, "say", printed.append)
    made = tmp_path / "made.jsonl"
    line = {"case": test_cases[0].fingerprint, "sample": 1, "text": render(THOUGHTS, "x")}
    made.write_text(json.dumps(line) + "\n", encoding="utf-8-sig")  # as Windows writes it
    call("eval", **{"sample.models": f"made=file:{made}"})
    assert results(tmp_path)["made"]["outcomes"] == {"OK": 1, "missing": 3}
    assert "sample: made: 4 completions, 1 drawn now, 3 missing" in printed


def test_an_openai_compatible_server_judges(call, tmp_path, openai, test_cases):
    made = tmp_path / "made.jsonl"
    answers = (test_cases[0].final_diagnosis, "Sable gout")
    trace = " ".join(test_cases[0].statements)
    lines = [
        {"case": test_cases[0].fingerprint, "text": render(trace, answer)} for answer in answers
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"sample.models": f"made=file:{made}", "data.eval_cases": 1}
    judge = {"judge.name": "openai", "judge.model": "vllm-model"}
    assert call("eval", **fields, **judge) == (0, [])
    assert results(tmp_path)["made"]["accuracy"]["1"]["value"] == 0.5
    assert results(tmp_path)["made"]["reasoning_recall_verified"]["value"] == 1.0
    of_judge = json.loads((tmp_path / "results.json").read_text())["judge"]
    assert of_judge["name"] == "openai:vllm-model" and of_judge["identity"] == "openai/vllm-model"
    assert main(["verify", f"--workdir={tmp_path}"]) == 0
    # A workdir from before there were several judges asks nothing again.
    stored, calls = json.loads((tmp_path / "config.json").read_text()), len(openai.calls)
    for field in ("models", "repeat"):
        del stored["judge"][field]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    before = (tmp_path / "results.json").read_bytes()
    assert main(["eval", f"--workdir={tmp_path}"]) == 0 and len(openai.calls) == calls
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.promise("`judge.unresolved_limit` is for each judge")
def test_missing_verdicts_of_a_further_judge_end_the_command_with_its_name(
    call, tmp_path, openai, test_cases
):
    made = tmp_path / "made.jsonl"
    lines = [
        {"case": test_cases[0].fingerprint, "text": render(THOUGHTS, answer)}
        for answer in (test_cases[0].final_diagnosis, "Sable gout")
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"sample.models": f"made=file:{made}", "data.eval_cases": 1, "judge.attempts": 1}
    fields |= {"judge.models": "offline,o=openai:m", "judge.concurrency": 1}
    assert call("sample", **fields) == (0, [])
    openai.then(openai.says("maybe"))
    status, (line,) = call("judge", **fields)
    assert status == 1 and "o: 1 of 3 verdicts are missing" in line
    assert call("judge", **fields) == (0, [])
    assert call("eval", **fields) == (0, [])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["judge"]["name"] == "offline" and found["judges"]["o"]["identity"] == "openai/m"
    assert found["judges"]["o"]["agreement"]["diagnosis"]["raw"]["value"] == 1.0
    assert "Table of judges" in (tmp_path / "report.html").read_text()
    assert main(["verify", f"--workdir={tmp_path}"]) == 0


def test_named_endpoints_are_candidates_and_judges_with_a_key_of_their_own_each(
    call, tmp_path, openai, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    keys = {"OURS_KEY": "ours-key-7", "THEIRS_KEY": "theirs-key-8"}
    monkeypatch.setenv("OURS_KEY", keys["OURS_KEY"])
    fields = {
        "endpoints": f"ours={openai.url} OURS_KEY,theirs={openai.url} THEIRS_KEY",
        "sample.models": "m=ours:some/model",
        "judge.models": "pair=diagnosis:ours:small+reasons:theirs:large,ours:other,offline",
    }
    status, (line,) = call("eval", **fields)
    assert status == 2 and "no key for theirs: set THEIRS_KEY" in line
    assert not openai.calls  # not one completion was paid for
    monkeypatch.setenv("THEIRS_KEY", keys["THEIRS_KEY"])
    assert call("eval", **fields) == (0, [])
    asked = {(call.body["model"], call.headers["authorization"]) for call in openai.calls}
    ours = {(model, "Bearer ours-key-7") for model in ("some/model", "small", "other")}
    assert asked == {*ours, ("large", "Bearer theirs-key-8")}
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["judge"]["identity"] == "diagnosis: ours/small; reasons: theirs/large"
    assert found["judge"]["usage"]["requests"] == sum(
        call.body["model"] in ("small", "large") for call in openai.calls
    )
    others = {name: judge.get("identity") for name, judge in found["judges"].items()}
    assert others == {"ours:other": "ours/other", "offline": "offline/1"}
    assert main(["verify", f"--workdir={tmp_path}"]) == 0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(key.encode() in written for key in keys.values())


def test_a_named_endpoint_is_the_one_judge_by_judge_name(call, tmp_path, openai, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    fields = {
        "endpoints": f"ours={openai.url}",
        "sample.models": "m=ours:some/model",
        "judge.name": "ours",
        "judge.model": "judge-model",
    }
    assert call("eval", **fields) == (0, [])
    assert {call.body["model"] for call in openai.calls} == {"some/model", "judge-model"}
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["judge"]["name"] == "ours:judge-model"
    by_models = {**fields, "judge.name": "offline", "judge.models": "ours:judge-model"}
    calls = len(openai.calls)
    assert call("eval", **by_models) == (0, []) and len(openai.calls) == calls


def test_the_budget_holds_for_a_judge_at_a_named_endpoint(call, openai):
    fields = {"endpoints": f"ours={openai.url}", "sample.models": "m=openai:m"}
    fields |= {"judge.models": "ours:m", "judge.concurrency": 1}
    assert call("sample", **fields) == (0, [])
    made, limit = len(openai.calls), len(openai.calls) + 1
    status, (line,) = call("judge", **fields, **{"budget.requests": limit})
    assert status == 75 and "config.budget.requests" in line
    assert len(openai.calls) == limit == made + 1
    status, (line,) = call("judge", **fields, **{"budget.dollars": 1})
    assert status == 2 and "the price of ours:m is unknown" in line


def test_models_elsewhere_are_evaluated_without_jax(clinic_data, tmp_path, test_cases):
    """People who measure an API need no accelerator stack to start."""
    made = tmp_path / "made.jsonl"
    line = {"case": test_cases[0].fingerprint, "text": render(THOUGHTS, "x")}
    made.write_text(json.dumps(line) + "\n")
    flags = [
        f"--config.data.data_dir={clinic_data}",
        f"--config.sample.models=made=file:{made}",
        "--config.judge.name=offline",
        "--config.sample.n=1",
    ]
    call = ["eval", "--config=eval", f"--workdir={tmp_path / 'w'}", *flags]
    code = (
        "import sys; from mcr_jax.cli.main import main\n"
        f"assert main({call!r}) == 0\nassert 'jax' not in sys.modules, 'jax was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
