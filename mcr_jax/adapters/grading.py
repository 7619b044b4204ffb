"""Grades one completion outside of a workdir: our parsing, judges' requests and readings.

The harness gives the completion, and a function that sends a judge's request to a model of its own.
The result is the `Sample` that scoring reads from a ledger, so that `score/samples.py` scores it.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import config as configs
from mcr_jax import prompts
from mcr_jax.cases import Case
from mcr_jax.data.dataset import load_cases
from mcr_jax.data.example import prompt_messages
from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.generate.joined import STAGES, Sample, read
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.generate.questions import read as read_verdict
from mcr_jax.generate.questions import token_limit
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.judges.choose import JUDGES, reader
from mcr_jax.prompts import Prompt

TASK = "medcasereasoning"
_MOST_TOKENS = 65_536  # of a judge's reply, after truncated ones

# Sends the request of a judge to a model; the key of the request is the stage of judging.
Ask = Callable[[Request], Awaitable[Reply]]


def settings(**fields: Any) -> ConfigDict:
    """Returns the default config with some fields changed, by dotted name.

    Raises:
      UsageError: a field is unknown, or its value is of another type or out of range.
    """
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        configs.check_field(name)
        section, _, last = name.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[last] = value
    return configs.check(ConfigDict(plain), "the adapter")


def load(config: ConfigDict) -> tuple[list[Case], Prompt]:
    """Returns the cases of config.data and the prompt around a presentation.

    Raises:
      McrError: the dataset is missing or damaged.
      UsageError: the split or the prompt is unknown.
    """
    data = config.data
    cases = load_cases(data.data_dir or None, data.eval_split)[: data.eval_cases or None]
    return cases, prompts.load(config.prompt, config.prompts)


def question(case: Case, prompt: Prompt) -> dict[str, Any]:
    """Returns a case as harnesses list it.

    Returns:
      "id", its fingerprint; "messages" for the model; "target", the published diagnosis; and
      "metadata", which no model sees and from which `case_of` restores what judges need.
    """
    return {
        "id": case.fingerprint,
        "messages": [dict(message) for message in prompt_messages(case, prompt)],
        "target": case.final_diagnosis,
        "metadata": {
            "pmcid": case.pmcid,
            "article_link": case.article_link,
            "diagnostic_reasoning": case.diagnostic_reasoning,
        },
    }


def case_of(presentation: str, target: str, metadata: Mapping[str, Any]) -> Case:
    """Returns the case of a `question`, with another presentation: judges do not see it."""
    return Case(
        pmcid=metadata["pmcid"],
        case_prompt=presentation,
        diagnostic_reasoning=metadata["diagnostic_reasoning"],
        final_diagnosis=target,
    )


class Grader:
    """Judges of one config.

    Attributes:
      config: locked; `score.answer` and `judge` are read.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        self._prompts = {
            stage: prompts.load(JUDGES[stage].PROMPT, config.prompts) for stage in STAGES
        }

    async def grade(
        self,
        case: Case,
        text: str,
        outcome: Outcome,
        sample: int,
        ask: Ask,
        stages: Collection[str] = STAGES,
    ) -> Sample:
        """Returns a completion with its verdicts.

        Args:
          case: the case that it answers.
          text: the completion, thoughts included.
          outcome: how it ended.
          sample: its index among the completions of the case, from 0.
          ask: sends a judge's request; called up to config.judge.attempts times for each of the
            config.judge.repeat verdicts.
          stages: which verdicts to ask for.
        """
        row = RowKey(stage="sample", case=case.fingerprint, model="", sample=sample)
        said = read(
            Attempt(row=row, digest="", attempt=1, outcome=outcome, text=text), self.answers
        )
        wanted, c = {}, self.config.judge
        if said is not None and said.answer is not None and "diagnosis" in stages:
            of_stage = self._prompts["diagnosis"]
            wanted["diagnosis"] = diagnosis.request(
                "diagnosis", case, said.answer, of_stage, max_tokens=c.max_tokens
            )
        if said is not None and said.trace and self.recalled(sample) and "reasons" in stages:
            of_stage, limits = self._prompts["reasons"], {"max_tokens": c.max_tokens}
            wanted["reasons"] = reasons.request(
                "reasons", case, said.trace, of_stage, quote_words=c.quote_words, **limits
            )
        verdicts = []
        for repeat in range(c.repeat):
            of_repeat = dict.fromkeys(STAGES)
            for stage, request in wanted.items():
                place = row.judged(stage, "harness", repeat)
                # As `mcr judge`: each repeat has a seed of its own.
                request = dataclasses.replace(request, seed=repeat)
                of_repeat[stage] = await self._verdict(place, request, ask)
            verdicts.append(of_repeat)
        first, *others = verdicts
        repeats = tuple((of_repeat["diagnosis"], of_repeat["reasons"]) for of_repeat in others)
        return Sample(
            row=row, outcome=outcome, error="", said=said, text=text, repeats=repeats, **first
        )

    @property
    def answers(self) -> str:
        """Mode of reading answers, config.score.answer."""
        return self.config.score.answer

    def recalled(self, sample: int) -> bool:
        """Returns whether the trace of this sample is judged for recall."""
        return sample < self.config.judge.recall_samples

    async def _verdict(self, row: RowKey, request: Request, ask: Ask) -> Attempt:
        read_by, attempt = reader(row.stage, self.config), None
        for number in range(1, self.config.judge.attempts + 1):
            limit = token_limit(request, attempt, _MOST_TOKENS)
            reply = await ask(dataclasses.replace(request, max_tokens=limit))
            attempt = Attempt(
                row=row,
                digest="",
                attempt=number,
                outcome=reply.outcome,
                text=reply.text,
                error=reply.error,
                model_version=reply.model_version,
                max_tokens=limit,
            )
            if attempt.outcome is Outcome.OK:
                attempt = read_verdict(attempt, request, read_by)
            if attempt.outcome is Outcome.OK:
                break
        return attempt
