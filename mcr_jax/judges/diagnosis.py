"""Diagnosis judge: compares the predicted with the published diagnosis.

In: the case's label and the completion's answer, nothing else. Out: `{"same": bool}`.
"""

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply
from mcr_jax.prompts import Prompt, inert

PROMPT = "judge_diagnosis"
READING = "diagnosis/2"  # incremented when `parse` changes: stored replies are then parsed again
SCHEMA = {"type": "object", "properties": {"same": {"type": "boolean"}}, "required": ["same"]}


def request(
    key: str, case: Case, answer: str, prompt: Prompt, *, max_tokens: int = 16_384
) -> Request:
    """Returns the request for a verdict on one completion.

    Args:
      key: name of the request within the run.
      case: holds the published diagnosis.
      answer: the completion's answer.
      prompt: takes `reference` and `predicted`.
      max_tokens: limit of the reply, thoughts included.
    """
    fields = {"reference": case.final_diagnosis, "predicted": answer}
    text = prompt.render(**{name: inert(value) for name, value in fields.items()})
    return Request(
        key=key,
        messages=({"role": "user", "content": text},),
        max_tokens=max_tokens,
        schema=SCHEMA,
        fields=fields,
    )


def parse(request: Request, text: str) -> dict[str, bool]:
    """Parses the verdict `{"same": bool}`.

    Raises:
      ValueError: the text is anything else.
    """
    (same,) = _reply.fields(_reply.unwrap(_reply.read(text), dict), same=bool)
    return {"same": same}
