"""Two fictional cases with completions of every kind, measured by our own pipeline."""

import json

import pytest

from mcr_jax import prompts
from mcr_jax.cli.main import main
from mcr_jax.completion import render
from mcr_jax.data.dataset import load_cases
from mcr_jax.data.example import prompt_messages

SAMPLES = 5
THOUGHTS = "It hums, and there is no frost."


@pytest.fixture
def completions(clinic_data):
    """Text and outcome of `SAMPLES` completions for each of two cases, and the cases' prompts."""
    first, second = load_cases(clinic_data, "test")[:2]
    half = first.statements[: len(first.statements) // 2]
    wrong = (render(THOUGHTS, "Sable gout"), "OK")
    rows = {
        first: [
            (render(" ".join(half), first.final_diagnosis), "OK"),
            wrong,
            (f"Thus.\n\nFinal answer: {first.final_diagnosis}", "OK"),
            (f"<think>\n{THOUGHTS}", "TRUNCATED"),
            ("I cannot say.", "OK"),
        ],
        second: [
            (render(" ".join(second.statements), "Brindle rime"), "OK"),
            ("", "BLOCKED"),
            wrong,
            (render(THOUGHTS, second.final_diagnosis), "OK"),
            (render("", second.final_diagnosis), "OK"),
        ],
    }
    prompt = prompts.load("diagnose_brief")
    return [
        (case, prompt_messages(case, prompt)[0]["content"], of_case)
        for case, of_case in rows.items()
    ]


YES = json.dumps({"same": True})


@pytest.fixture
def moody(openai):
    """The server judges by its rule at seed 0; at others any answer is right, no trace any good."""
    by_rule = openai._judgement

    def judged(call):
        text = call.body["messages"][-1]["content"]
        if not call.body["seed"] or ("<predicted>" not in text and "<statements>" not in text):
            return by_rule(call)
        if "<predicted>" in text:
            return YES
        found = json.loads(by_rule(call))["reply"]
        return json.dumps({"reply": [{**of, "quotes": []} for of in found]})

    openai._judgement = judged
    return openai


@pytest.fixture
def ours(completions, openai, clinic_data, tmp_path):
    """Returns results.json of the completions, judged by `openai`; takes fields of judge."""
    made = tmp_path / "made.jsonl"
    rows = [
        {"case": case.fingerprint, "sample": sample, "text": text, "outcome": outcome}
        for case, _, of_case in completions
        for sample, (text, outcome) in enumerate(of_case)
    ]
    made.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measured(**judge):
        fields = {
            "data.data_dir": clinic_data,
            "data.eval_cases": 2,
            "sample.models": f"made=file:{made}",
            "sample.n": SAMPLES,
            "prompt": "diagnose_brief",
            "score.resamples": 20,
        }
        judge = {"models": "openai:loopback", **judge}
        fields |= {f"judge.{name}": value for name, value in judge.items()}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        assert main(["eval", "--config=eval", f"--workdir={tmp_path / 'ours'}", *flags]) == 0
        return json.loads((tmp_path / "ours" / "results.json").read_text())["models"]["made"]

    return measured
