"""Grades of one completion: the requests that a judge gets, and what its replies count."""

import asyncio
import json
import math
import statistics

import pytest

from mcr_jax.adapters.grading import Grader, case_of, load, question, settings
from mcr_jax.cli.main import main
from mcr_jax.completion import render
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.api import Outcome, Reply
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.prompts import load as load_prompt
from mcr_jax.score.samples import decided, kind, right, sample_recall


@pytest.fixture
def case(clinic_cases):
    return clinic_cases["test"][0]


def grade(
    case,
    text,
    *replies,
    outcome=Outcome.OK,
    sample=0,
    stages=("diagnosis", "reasons"),
    repeat=1,
):
    """Grades a completion by these replies in turn; returns it and the requests."""
    asked, left = [], list(replies)

    async def ask(request):
        asked.append(request)
        reply = left.pop(0)
        text, ended = reply if isinstance(reply, tuple) else (reply, Outcome.OK)
        return Reply(key=request.key, index=0, text=text, outcome=ended)

    grader = Grader(settings(**{"judge.repeat": repeat}))
    return asyncio.run(grader.grade(case, text, outcome, sample, ask, stages)), asked


def test_a_judge_gets_the_requests_of_our_pipeline(case):
    text = render("It hums.", "Sable gout")
    found = json.dumps([{"number": n, "quotes": []} for n in range(1, len(case.statements) + 1)])
    sample, asked = grade(case, text, '{"same": false}', found)
    for request, judge, said in zip(
        asked, (diagnosis, reasons), ("Sable gout", "It hums."), strict=True
    ):
        ours = judge.request("key", case, said, load_prompt(judge.PROMPT))
        assert request.messages == ours.messages and request.schema == ours.schema
        assert request.max_tokens == ours.max_tokens
    assert right(kind(sample.outcome, sample.said), sample.diagnosis) is False
    assert sample_recall(sample.said, sample.reasons) == (0.0, 0.0)


def test_repeats_are_draws_of_their_own_and_their_majority_decides(case):
    yes, no = '{"same": true}', '{"same": false}'
    sample, asked = grade(case, render("", "Sable gout"), no, yes, "what?", yes, repeat=3)
    assert [request.seed for request in asked] == [0, 1, 2, 2]
    found = decided(sample)
    assert (found.rights, found.right) == ([False, True, True], True)
    assert [verdict.row.repeat for verdict in sample.diagnoses] == [0, 1, 2]


@pytest.mark.promise("The metrics are those of `results.json`")
def test_the_scores_in_a_log_are_those_of_all_repeats(ours, moody, tmp_path):
    numbers, out = ours(recall_samples=2, repeat=3), tmp_path / "log.json"
    assert main(["export-log", f"--workdir={tmp_path / 'ours'}", f"--out={out}"]) == 0
    values = {"diagnosis": {}, "reasoning_recall": {}}
    for sample in json.loads(out.read_text())["samples"]:
        scores = {"diagnosis": sample["scores"]["diagnosis"]["value"]}
        scores |= sample["scores"]["reasons"]["value"]
        for name, of_case in values.items():
            if not math.isnan(scores[name]):
                of_case.setdefault(sample["id"], []).append(scores[name])
    means = {n: statistics.mean(map(statistics.mean, of.values())) for n, of in values.items()}
    assert means["diagnosis"] == pytest.approx(numbers["accuracy"]["1"]["value"])
    assert means["reasoning_recall"] == pytest.approx(numbers["reasoning_recall"]["value"])
    assert means["diagnosis"] > 0.5  # by the first repeat alone it is less


@pytest.mark.promise("Verdicts of several model versions are refused until `judge.version`")
def test_a_log_of_verdicts_of_two_versions_is_refused(ours, openai, tmp_path, capsys):
    choice = {"index": 0, "message": {"content": '{"same": true}'}, "finish_reason": "stop"}
    openai.then(openai.replies({"choices": [choice], "model": "another"}))
    ours(recall_samples=1)
    out = tmp_path / "log.json"
    export = ["export-log", f"--workdir={tmp_path / 'ours'}", f"--out={out}"]
    capsys.readouterr()
    assert main(export) == 1 and not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "another: " in line and "set config.judge.version" in line
    assert main([*export, "--config.judge.version=loopback-1"]) == 0


def test_a_reply_without_a_verdict_is_asked_for_again_and_then_unresolved(case):
    text = render("", "Sable gout")
    sample, asked = grade(case, text, "yes", '{"same": true}')
    assert len(asked) == 2 and right("OK", sample.diagnosis) is True
    sample, asked = grade(case, text, "yes", "yes", "yes")
    assert len(asked) == 3 and right("OK", sample.diagnosis) is None


def test_a_truncated_reply_is_asked_for_with_twice_the_tokens(case):
    text, cut = render("", "Sable gout"), ("{", Outcome.TRUNCATED)
    _, asked = grade(case, text, cut, cut, '{"same": true}')
    first = asked[0].max_tokens
    assert [request.max_tokens for request in asked] == [first, 2 * first, 4 * first]


@pytest.mark.parametrize(
    ("text", "outcome", "sample"),
    [
        ("I cannot say.", Outcome.OK, 1),
        ("<think>It hums.", Outcome.TRUNCATED, 1),
        (render("It hums.", "x"), Outcome.BLOCKED, 0),
        (render("It hums.", "x"), Outcome.INFRA_ERROR, 0),
    ],
)
def test_nothing_is_asked_where_our_pipeline_asks_nothing(case, text, outcome, sample):
    graded, asked = grade(case, text, outcome=outcome, sample=sample)
    assert not asked and graded.diagnosis is None and graded.reasons is None


def test_judges_read_the_same_from_a_case_that_a_harness_gives_back(case, clinic_prompt):
    asked = question(case, clinic_prompt)
    again = case_of(asked["messages"][0]["content"], asked["target"], asked["metadata"])
    assert (again.statements, again.final_diagnosis) == (case.statements, case.final_diagnosis)
    assert case.final_diagnosis not in asked["messages"][0]["content"]
    assert asked["id"] == case.fingerprint


def test_settings_are_checked_and_cases_are_those_of_the_dataset(clinic_data, tmp_path):
    fields = {"data.data_dir": str(clinic_data), "data.eval_split": "val"}
    cases, prompt = load(settings(**fields, **{"data.eval_cases": 2}))
    assert len(cases) == 2 and prompt.name == settings().prompt
    for wrong in ({"judge.nam": "x"}, {"judge.attempts": "many"}, {"judge.attempts": 0}):
        with pytest.raises(UsageError, match="judge"):
            settings(**wrong)
    with pytest.raises(McrError, match="mcr build"):
        load(settings(**{"data.data_dir": str(tmp_path)}))
