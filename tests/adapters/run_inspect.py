"""Runs our task of inspect_ai with its mock model on given completions: IN.json OUT.json LOGS."""

import importlib.util
import json
import pathlib
import re
import sys

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ModelOutput,
    ModelUsage,
    get_model,
)

from mcr_jax.adapters.inspect_task import medcasereasoning

USAGE = ModelUsage(input_tokens=11, output_tokens=12, total_tokens=23)


def inside(tag: str, text: str) -> str:
    return re.findall(rf"(?s)<{tag}>\n(.*?)\n</{tag}>", text)[-1]


def judged(messages, tools, choice, config) -> ModelOutput:
    """Judges by the rule of the fixture `moody`."""
    assert config.temperature == 0.0
    text = "".join(message.text for message in messages)
    if "<predicted>" in text:
        same = inside("reference", text) == inside("predicted", text)
        reply = {"same": bool(config.seed) or same}
    else:
        trace = inside("trace", text) if not config.seed else ""
        numbered = re.findall(r"(?m)^(\d+)\. (.*)$", inside("statements", text))
        reply = [{"number": int(n), "quotes": [s] * (s in trace)} for n, s in numbered]
    return ModelOutput.from_content("mock-judge", json.dumps(reply)).model_copy(
        update={"usage": USAGE}
    )


def main(given: pathlib.Path, out: pathlib.Path, logs: str) -> None:
    asked = json.loads(given.read_text(encoding="utf-8"))
    left = {prompt: list(completions) for prompt, completions in asked["completions"].items()}

    def answered(messages, *unused) -> ModelOutput:
        content, stop = left[messages[-1].text].pop(0)
        message = ChatMessageAssistant(content=content, model="mock", source="generate")
        choice = ChatCompletionChoice(message=message, stop_reason=stop)
        return ModelOutput(model="mock", choices=[choice], usage=USAGE)

    (log,) = run(
        medcasereasoning(**asked["task"]),
        model=get_model("mockllm/model", custom_outputs=answered),
        model_roles={"grader": get_model("mockllm/judge", custom_outputs=judged)},
        log_dir=logs,
        limit=asked["limit"],
        max_samples=1,
        display="none",
    )
    assert log.status == "success", log.error
    read = read_eval_log(log.location)
    found = {
        "scores": [score.model_dump(mode="json") for score in read.results.scores],
        "samples": [
            {
                "epoch": s.epoch,
                "scores": {n: v.model_dump(mode="json") for n, v in s.scores.items()},
            }
            for s in read.samples
        ],
        "litellm": importlib.util.find_spec("litellm") is not None,
    }
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3])
