"""Task of inspect_ai: our cases, prompt, parsing and judges inside inspect's `eval`.

    inspect eval mcr_jax/medcasereasoning --model=openai/gpt-4o --model-role=grader=google/MODEL

Needs the extra [inspect] and a dataset that `mcr build` prepared. The judge is the model with the
role `grader`. Numbers agree with `mcr eval` on the same completions and verdicts: an epoch is a
sample of a case, and what is unresolved is unscored, never wrong.
"""

from collections.abc import Collection
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.model import (
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, accuracy, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.util import JSONSchema

from mcr_jax.adapters.grading import Ask, Grader, case_of, load, question, settings
from mcr_jax.adapters.inspect_log import RECALLS, diagnosis_score, reasons_score
from mcr_jax.completion import with_thoughts
from mcr_jax.generate import services
from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.generate.joined import Sample
from mcr_jax.metrics import METRICS
from mcr_jax.model_specs import GEMINI, OPENAI

GRADER = "grader"  # role of the model that judges
_OUTCOMES = {
    "stop": Outcome.OK,
    "max_tokens": Outcome.TRUNCATED,
    "model_length": Outcome.TRUNCATED,
    "content_filter": Outcome.BLOCKED,
}


@task
def medcasereasoning(
    split: str = "test",
    data_dir: str = "",
    prompt: str = "diagnose",
    samples: int = 10,
    recall_samples: int = 1,
    judge_repeat: int = 1,
    temperature: float = 0.7,
    max_tokens: int = 4096,
) -> Task:
    """Diagnoses with reasons; accuracy@k and reasoning recall.

    Args:
      split: train, val or test.
      data_dir: TFDS data_dir; "" is TFDS's default.
      prompt: name of a prompt of mcr_jax.
      samples: completions per case (epochs).
      recall_samples: traces per case that are judged for recall.
      judge_repeat: verdicts on each completion, as config.judge.repeat.
      temperature: of the candidate.
      max_tokens: most tokens per completion.

    Raises:
      McrError: the dataset is missing, or a setting is wrong.
    """
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.dataset import Sample as Question

    config = settings(
        **{"data.eval_split": split, "data.data_dir": data_dir, "prompt": prompt},
        **{"judge.recall_samples": recall_samples, "judge.repeat": judge_repeat},
        **{"sample.n": samples},
    )
    cases, text = load(config)
    asked = [question(case, text) for case in cases]
    ks = [m.samples for m in METRICS if 1 < m.samples <= samples]
    return Task(
        dataset=MemoryDataset(
            [
                Question(
                    id=q["id"],
                    input=[
                        ChatMessageUser(content=message["content"]) for message in q["messages"]
                    ],
                    target=q["target"],
                    metadata=q["metadata"],
                )
                for q in asked
            ],
            name="medcasereasoning",
        ),
        solver=generate(),
        scorer=[diagnosis(judge_repeat), reasons(recall_samples, judge_repeat)],
        config=GenerateConfig(temperature=temperature, max_tokens=max_tokens),
        epochs=Epochs(samples, ["mean", *(f"pass_at_{k}" for k in ks)]),
    )


@scorer(metrics=[accuracy(), stderr()])
def diagnosis(judge_repeat: int = 1) -> Scorer:
    """Scores the answer by our diagnosis judge: 1 right, 0 wrong, else unscored."""
    grader = Grader(settings(**{"judge.repeat": judge_repeat}))

    async def score(state: TaskState, target: Target) -> Score:
        return Score(**diagnosis_score(await _graded(grader, state, target, ["diagnosis"])))

    return score


@scorer(metrics={name: [mean(), stderr()] for name in RECALLS})
def reasons(recall_samples: int = 1, judge_repeat: int = 1) -> Scorer:
    """Scores the trace by our reasons judge: recall and verified recall, else unscored."""
    fields = {"judge.recall_samples": recall_samples, "judge.repeat": judge_repeat}
    grader = Grader(settings(**fields))

    async def score(state: TaskState, target: Target) -> Score:
        sample = await _graded(grader, state, target, ["reasons"])
        return Score(**reasons_score(sample, grader.config))

    return score


async def _graded(
    grader: Grader, state: TaskState, target: Target, stages: Collection[str]
) -> Sample:
    case = case_of(state.input_text, target.text, state.metadata)
    outcome = _outcome(state.output)
    text = _text(state.output) if outcome in (Outcome.OK, Outcome.TRUNCATED) else ""
    return await grader.grade(
        case, text, outcome, state.epoch - 1, _asking(get_model(role=GRADER)), stages
    )


def _outcome(output: ModelOutput) -> Outcome:
    if output.empty:
        return Outcome.INFRA_ERROR
    return _OUTCOMES.get(output.stop_reason, Outcome.MALFORMED)


def _text(output: ModelOutput) -> str:
    """Returns a completion with its reasoning in front, as `mcr sample` stores it."""
    content = output.message.content
    if isinstance(content, str):
        return content
    thoughts = "\n".join(
        (part.summary or "") if part.redacted else part.reasoning
        for part in content
        if part.type == "reasoning"
    )
    said = "".join(part.text for part in content if part.type == "text")
    return with_thoughts(thoughts, said)


def _asking(model: Model) -> Ask:
    """Returns a function that sends the request of a judge to `model`, set up as by `mcr judge`."""
    provider, _, _ = str(model).partition("/")
    samples = services.samples(GEMINI if provider == "google" else OPENAI, model.name)

    async def ask(request: Request) -> Reply:
        output = await model.generate(
            [ChatMessageUser(content=message["content"]) for message in request.messages],
            config=GenerateConfig(
                temperature=request.temperature if samples else None,
                seed=request.seed or None,  # some servers refuse one, and only repeats need it
                max_tokens=request.max_tokens,
                response_schema=ResponseSchema(name="reply", json_schema=_schema(request)),
            ),
        )
        outcome = _outcome(output)
        return Reply(
            key=request.key,
            index=0,
            text="" if output.empty else output.message.text,
            outcome=outcome,
            model_version=output.model,
            error=output.error or ("" if outcome is Outcome.OK else "the judge did not finish"),
        )

    return ask


def _schema(request: Request) -> JSONSchema:
    """Returns the schema with an object as its root, which services want."""
    schema: dict[str, Any] = dict(request.schema or {})
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {"reply": schema}, "required": ["reply"]}
    return JSONSchema.model_validate({**schema, "additionalProperties": False})
