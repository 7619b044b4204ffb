"""Case -> conversation -> token ids with a loss mask: what one training example is."""

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
    """The conversation a model is asked to continue; shows the presentation and nothing else."""
    return ({"role": "user", "content": prompt.render(case_prompt=case.case_prompt)},)


def conversation(
    case: Case, prompt: Prompt, trace: str | None = None
) -> tuple[Mapping[str, str], ...]:
    """The question and the answer that is to be learned.

    The answer is `trace`, or the statements where there is none, and the diagnosis.
    """
    return (*prompt_messages(case, prompt), {"role": "assistant", "content": _target(case, trace)})


def enumerated_trace(case: Case) -> str:
    """The clinician's statements as published, one a line: the target unless traces are given."""
    return "\n".join(case.statements)


def training_texts(cases: Sequence[Case], prompt: Prompt) -> Iterator[str]:
    """Everything a model reads or writes in training: what a tokenizer is fitted on.

    The statements stand for any trace of them: a model must have its ids before it can stitch one.
    """
    for case in cases:
        for turn in conversation(case, prompt):
            yield turn["content"]


def example(case: Case, prompt: Prompt, tokenizer: Tokenizer, trace: str | None = None) -> Example:
    """Tokenizes prompt and target together, once; `trace` as in `conversation`."""
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
