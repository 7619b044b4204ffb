"""Training examples: case -> conversation -> token ids with a loss mask."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mcr_jax import completion
from mcr_jax.cases import Case
from mcr_jax.prompts import Prompt
from mcr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Example:
    """One tokenized conversation.

    Attributes:
      fingerprint: of its case.
      ids: int32 [length].
      trained: bool [length], the assistant's tokens and the end of its turn.
    """

    fingerprint: str
    ids: np.ndarray
    trained: np.ndarray


def prompt_messages(case: Case, prompt: Prompt) -> tuple[Mapping[str, str], ...]:
    """Returns the conversation that a model continues; of the case it has the presentation only."""
    return ({"role": "user", "content": prompt.render(case_prompt=case.case_prompt)},)


def conversation(
    case: Case, prompt: Prompt, trace: str | None = None
) -> tuple[Mapping[str, str], ...]:
    """Returns the question and the target answer: `trace`, or the statements, and the diagnosis."""
    return (*prompt_messages(case, prompt), {"role": "assistant", "content": _target(case, trace)})


def enumerated_trace(case: Case) -> str:
    """Returns the clinician's statements as published, one a line: the target without traces."""
    return "\n".join(case.statements)


def training_texts(cases: Sequence[Case], prompt: Prompt) -> Iterator[str]:
    """Yields the texts of training, to fit a tokenizer on.

    They have the statements in place of traces, which a model with these ids may write later.
    """
    for case in cases:
        for turn in conversation(case, prompt):
            yield turn["content"]


def example(case: Case, prompt: Prompt, tokenizer: Tokenizer, trace: str | None = None) -> Example:
    """Tokenizes prompt and target together; `trace` as in `conversation`."""
    encoded = tokenizer.encode_conversation(conversation(case, prompt, trace))
    return Example(
        fingerprint=case.fingerprint,
        ids=np.asarray(encoded.ids, np.int32),
        trained=np.asarray(encoded.trained, bool),
    )


def _target(case: Case, trace: str | None) -> str:
    return completion.render(
        enumerated_trace(case) if trace is None else trace, case.final_diagnosis
    )
