"""Our task inside the real inspect_ai gives the numbers of our own pipeline."""

import json
import math

import harness_python
import pytest

from mcr_jax.adapters.inspect_log import FOUND, VERIFIED

SAMPLES = 5
STOPS = {"OK": "stop", "TRUNCATED": "max_tokens", "BLOCKED": "content_filter"}


def contents(text, outcome, in_parts):
    """A completion as a provider of inspect_ai returns it: its reasoning may be a part."""
    thoughts, closed, said = text.partition("</think>")
    if not in_parts or not closed:
        return text, STOPS[outcome]
    reasoning = thoughts.removeprefix("<think>").strip()
    parts = [{"type": "reasoning", "reasoning": reasoning}, {"type": "text", "text": said.strip()}]
    return parts, STOPS[outcome]


@pytest.mark.slow
@pytest.mark.parametrize(("in_parts", "repeat"), [(False, 1), (True, 3)])
def test_the_task_gives_the_numbers_of_our_pipeline(
    completions, ours, moody, clinic_data, tmp_path, in_parts, repeat
):
    ours = ours(recall_samples=2, repeat=repeat)
    given, out = tmp_path / "given.json", tmp_path / "found.json"
    task = {"data_dir": str(clinic_data), "prompt": "diagnose_brief", "samples": SAMPLES}
    asked = {
        "task": {**task, "recall_samples": 2, "judge_repeat": repeat},
        "limit": 2,
        "completions": {
            prompt: [contents(*made, in_parts) for made in of_case]
            for _, prompt, of_case in completions
        },
    }
    given.write_text(json.dumps(asked))
    found = harness_python.run("run_inspect.py", out, given, out, tmp_path / "logs")
    scores = {(score["name"], score["reducer"]): score for score in found["scores"]}
    wanted = {
        ("diagnosis", "mean"): ours["accuracy"]["1"],
        ("diagnosis", f"pass_at_{SAMPLES}"): ours["accuracy"][str(SAMPLES)],
        (FOUND, "mean"): ours[FOUND],
        (VERIFIED, "mean"): ours[VERIFIED],
    }
    assert 0 < ours["accuracy"]["1"]["value"] < 1 and 0 < ours[FOUND]["value"] < 1
    for key, metric in wanted.items():
        name = "accuracy" if key[0] == "diagnosis" else "mean"
        value = scores[key]["metrics"][name]["value"]
        if metric["value"] is None:  # too few resolved samples
            assert scores[key]["scored_samples"] == 0
        else:
            assert math.isclose(value, metric["value"]), key
            assert scores[key]["scored_samples"] == metric["resolved"]
    assert not found["litellm"]
