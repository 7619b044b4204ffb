"""Environment of verifiers: our cases, prompt, parser and judges as a rubric.

    import verifiers as vf
    env = vf.load_environment("mcr_jax.adapters.verifiers_env", judge="gemini:gemini-3.5-flash")

Needs the extra [verifiers] and a dataset that `mcr build` prepared. The judge is one of ours, with
our keys. A reward is a number even where a verdict is missing: then `diagnosis` is 0 and the metric
`unresolved` is 1, so that a mean over resolved completions and its bounds remain computable.
"""

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import verifiers as vf
from datasets import Dataset
from ml_collections import ConfigDict

from mcr_jax.adapters.grading import Ask, Grader, case_of, load, question, settings
from mcr_jax.cases import Case
from mcr_jax.completion import Completion, parse, with_thoughts
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Remote, Reply, Request
from mcr_jax.judge_specs import STAGES
from mcr_jax.judges.choose import make_judges
from mcr_jax.score.samples import Decided, decided

_EVERY = 1_000_000_000  # recall_samples that hold every rollout
_WAITS_S = (1.0, 4.0, 16.0, 60.0)  # after a failed call of the judge
_DECIDED = "mcr_decided"  # in a rollout's state


class Answers(vf.Parser):
    """Parser of completions: `parse` returns a `Completion`, `parse_answer` the diagnosis."""

    def parse(self, text: str) -> Completion:
        """Reads a completion by the rules of `completion.parse`."""
        return parse(text)

    def parse_answer(self, completion: Any) -> str | None:
        """Returns the one answer of the last message, or None."""
        return self.parse(_text(completion)).answer


def load_environment(
    split: str = "test",
    data_dir: str = "",
    prompt: str = "diagnose",
    judge: str = "gemini:gemini-3.5-flash-lite",
    judge_repeat: int = 1,
    thinking: str = "",
    endpoints: Sequence[str] = (),
    recall_weight: float | None = 0.0,
    **kwargs: Any,
) -> vf.Environment:
    """Returns a single-turn environment whose evaluation and training sets are one split.

    Args:
      split: train, val or test.
      data_dir: TFDS data_dir; "" is TFDS's default.
      prompt: name of a prompt of mcr_jax.
      judge: one entry of config.judge.models, such as gemini:MODEL, openai:MODEL or paper.
      judge_repeat: verdicts on each completion, as config.judge.repeat.
      thinking: of the judge, as config.judge.thinking.
      endpoints: servers that `judge` may name, as config.endpoints.
      recall_weight: weight of verified recall in the reward, beside 1 for the diagnosis; 0 reports
        recall only, None does not judge it.
      **kwargs: of vf.SingleTurnEnv.

    Raises:
      McrError: the dataset is missing, or a setting, the judge or a key is wrong.
    """
    config = settings(
        **{"data.eval_split": split, "data.data_dir": data_dir, "prompt": prompt},
        **{"judge.models": (judge,), "judge.repeat": judge_repeat, "judge.thinking": thinking},
        **{"judge.recall_samples": _EVERY, "endpoints": tuple(endpoints)},
    )
    cases, text = load(config)
    asked = [question(case, text) for case in cases]
    rows = [
        {"prompt": q["messages"], "answer": q["target"], "info": {"id": q["id"], **q["metadata"]}}
        for q in asked
    ]
    parser = Answers()
    dataset = Dataset.from_list(rows)
    return vf.SingleTurnEnv(
        dataset=dataset,
        eval_dataset=dataset,
        parser=parser,
        rubric=_rubric(Grader(config), _asking(config), recall_weight, parser),
        **kwargs,
    )


def _rubric(grader: Grader, ask: Ask, recall_weight: float | None, parser: vf.Parser) -> vf.Rubric:
    stages = STAGES if recall_weight is not None else ("diagnosis",)

    async def graded(state: vf.State) -> Decided:
        if _DECIDED not in state:
            text, outcome = _completed(state)
            sample = await grader.grade(_case(state), text, outcome, 0, ask, stages)
            state[_DECIDED] = decided(sample)
        return state[_DECIDED]

    async def diagnosis(state: vf.State) -> float:
        return float((await graded(state)).right or 0)

    async def unresolved(state: vf.State) -> float:
        return float((await graded(state)).right is None)

    async def reasoning_recall(state: vf.State) -> float:
        return (await graded(state)).recall.found or 0.0

    async def reasoning_recall_verified(state: vf.State) -> float:
        return (await graded(state)).recall.verified or 0.0

    async def recall_unresolved(state: vf.State) -> float:
        return float((await graded(state)).recall.found is None)

    rubric = vf.Rubric(funcs=[diagnosis, unresolved], weights=[1.0, 0.0], parser=parser)
    if recall_weight is not None:
        rubric.add_metric(reasoning_recall)
        rubric.add_metric(recall_unresolved)
        rubric.add_reward_func(reasoning_recall_verified, weight=recall_weight)
    return rubric


def _case(state: vf.State) -> Case:
    return case_of(_field(state["prompt"][-1], "content"), state["answer"], state["info"])


def _completed(state: vf.State) -> tuple[str, Outcome]:
    """Returns the completion of a rollout and how it ended."""
    if state.get("prompt_too_long"):
        return "", Outcome.PROMPT_TOO_LONG
    if not state["trajectory"]:
        return "", Outcome.INFRA_ERROR
    message = state["trajectory"][-1]["response"].message
    if message.is_truncated:
        return _text(state["completion"]), Outcome.TRUNCATED
    if message.finish_reason != "stop":  # a filter, a tool
        return "", Outcome.MALFORMED
    return _text(state["completion"]), Outcome.OK


def _text(messages: Any) -> str:
    """Returns the last message with its reasoning in front, as `mcr sample` stores it."""
    if isinstance(messages, str):
        return messages
    if not messages:
        return ""
    thoughts = _field(messages[-1], "reasoning_content")
    said = vf.Parser()._content_to_text(_field(messages[-1], "content"))
    return with_thoughts(thoughts, said)


def _field(message: Any, name: str) -> Any:
    value = message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
    return "" if value is None else value


def _asking(config: ConfigDict) -> Ask:
    """Returns a function that sends a request to the judge, again after failures of the network."""
    make_judges(config)  # refuses a missing key before the first rollout
    judges: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # by event loop

    async def ask(request: Request) -> Reply:
        loop = asyncio.get_running_loop()
        if loop not in judges:  # connections belong to a loop
            (judges[loop],) = make_judges(config).values()
        judge = judges[loop][request.key]
        if not isinstance(judge, Remote):
            return next(iter(judge.generate([request])))
        for wait in (*_WAITS_S, None):
            try:
                reply = await judge.call(request, 0)
            except McrError as error:  # a refused call is no verdict
                return _no_reply(request, str(error))
            if reply.outcome is not Outcome.INFRA_ERROR or wait is None:
                break
            await asyncio.sleep(max(wait, reply.retry_after or 0))
        return reply

    return ask


def _no_reply(request: Request, error: str) -> Reply:
    return Reply(key=request.key, index=0, text="", outcome=Outcome.INFRA_ERROR, error=error)
