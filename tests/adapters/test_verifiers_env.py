"""Our environment inside the real verifiers gives the numbers of our own pipeline."""

import json
import math
import statistics

import harness_python
import pytest

SAMPLES = 5


def answered(openai, text, outcome):
    """The reply of a server to a candidate's call."""
    if outcome == "BLOCKED":
        return openai.says("", finish="content_filter")
    thoughts, closed, said = text.partition("\n</think>\n")
    if not closed:
        return openai.says(text, finish="length" if outcome == "TRUNCATED" else "stop")
    reasoning = thoughts.removeprefix("<think>\n")
    return openai.says(said, thoughts=reasoning, field="reasoning_content")


def served(openai, completions):
    """Lets the server answer candidates by prompt; judges are answered by its rule."""
    left = {prompt: [answered(openai, *m) for m in made] for _, prompt, made in completions}
    judged = openai._take

    def take(call):
        candidate = left.get(call.body["messages"][-1]["content"])
        return candidate.pop(0) if candidate else judged(call)

    openai._take = take


@pytest.mark.slow
def test_the_environment_gives_the_numbers_of_our_pipeline(
    completions, ours, moody, openai, clinic_data, tmp_path
):
    """The judge is a pair, one of it at an endpoint of its own, with three verdicts each."""
    ours = ours(recall_samples=SAMPLES, repeat=3)
    given, out = tmp_path / "given.json", tmp_path / "found.json"
    environment = {
        "data_dir": str(clinic_data),
        "prompt": "diagnose_brief",
        "judge": "diagnosis:openai:small+reasons:there:large",
        "judge_repeat": 3,
        "endpoints": [f"there={openai.url}"],
        "recall_weight": 0.5,
    }
    openai.calls.clear()
    given.write_text(
        json.dumps({"environment": environment, "url": openai.url, "rollouts": SAMPLES})
    )
    served(openai, completions)
    found = harness_python.run("run_verifiers.py", out, given, out)
    assert not found["litellm"]
    judges = {
        stage: {c.body["model"] for c in openai.calls if f"<{stage}>" in str(c.body["messages"])}
        for stage in ("predicted", "statements")
    }
    assert judges == {"predicted": {"small"}, "statements": {"large"}}
    by_case = {}
    for rollout in found["rollouts"]:
        by_case.setdefault(rollout["id"], []).append(rollout["metrics"])
        metrics = rollout["metrics"]
        reward = metrics["diagnosis"] + 0.5 * metrics["reasoning_recall_verified"]
        assert math.isclose(rollout["reward"], reward)
    assert [len(of_case) for of_case in by_case.values()] == [SAMPLES, SAMPLES]
    accuracy = statistics.mean(
        statistics.mean(m["diagnosis"] for m in of_case if not m["unresolved"])
        for of_case in by_case.values()
    )
    assert math.isclose(accuracy, ours["accuracy"]["1"]["value"])
    worst = statistics.mean(m["diagnosis"] for of_case in by_case.values() for m in of_case)
    assert math.isclose(worst, ours["accuracy"]["1"]["worst"])
    for name in ("reasoning_recall", "reasoning_recall_verified"):
        recall = statistics.mean(
            statistics.mean(m[name] for m in of_case if not m["recall_unresolved"])
            for of_case in by_case.values()
        )
        assert math.isclose(recall, ours[name]["value"])
    assert 0 < accuracy < 1 and 0 < recall < 1
    assert sum(m["unresolved"] for of_case in by_case.values() for m in of_case) == 1


@pytest.mark.slow
def test_a_judge_that_refuses_leaves_completions_unresolved(
    completions, openai, clinic_data, tmp_path
):
    given, out = tmp_path / "given.json", tmp_path / "found.json"
    environment = {"data_dir": str(clinic_data), "prompt": "diagnose_brief"}
    environment |= {"judge": "openai:loopback", "recall_weight": None}
    given.write_text(json.dumps({"environment": environment, "url": openai.url, "rollouts": 1}))
    openai.then(*[openai.error(401, "no such key")] * 6)
    served(openai, completions)
    found = harness_python.run("run_verifiers.py", out, given, out)
    metrics = [rollout["metrics"] for rollout in found["rollouts"]]
    assert [(m["diagnosis"], m["unresolved"]) for m in metrics] == [(0, 1), (0, 1)]
    assert "reasoning_recall" not in metrics[0]
