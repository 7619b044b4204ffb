"""The reasons judge: which of the clinician's statements does a trace make?

In: a case's numbered statements and one trace, in one request. Out: per statement the quotes that
the judge gave, whether it gave any, and whether any of them really stands in the trace.
"""

from typing import Any

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply
from mcr_jax.prompts import Prompt, inert
from mcr_jax.quotes import find

PROMPT = "judge_reasons"
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "number": {"type": "integer"},
            "quotes": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["number", "quotes"],
    },
}


def request(key: str, case: Case, trace: str, prompt: Prompt, *, max_tokens: int) -> Request:
    """What the judge is asked about one trace.

    Args:
      key: names the request within the run.
      case: gives the clinician's statements.
      trace: the reasoning of the completion.
      prompt: takes `statements`, one numbered line each, and `trace`.
      max_tokens: limit of the reply, thoughts included.
    """
    lines = (f"{n}. {' '.join(s.split())}" for n, s in enumerate(case.statements, start=1))
    text = prompt.render(statements=inert("\n".join(lines)), trace=inert(trace))
    return Request(
        key=key,
        messages=({"role": "user", "content": text},),
        max_tokens=max_tokens,
        schema=SCHEMA,
        fields={"statements": case.statements, "trace": trace},
    )


def parse(request: Request, text: str) -> dict[str, list[Any]]:
    """Reads the verdict, each list with one entry per statement in their order.

    Returns:
      `quotes`: the quotes that are not blank; `found`: whether there are any; `verified`: whether
      any of them stands in the trace, as `quotes.find` compares.

    Raises:
      ValueError: the text is not of the asked form, or a statement's number is missing, repeated or
        out of range.
    """
    trace, total = request.fields["trace"], len(request.fields["statements"])
    entries = _reply.read(text)
    if not isinstance(entries, list):
        raise ValueError("expected a list")
    given: dict[int, list[str]] = {}
    for entry in entries:
        number, quotes = _reply.fields(entry, number=int, quotes=list)
        if not 1 <= number <= total:
            raise ValueError(f"statement {number} of {total} does not exist")
        if number in given:
            raise ValueError(f"statement {number} is answered twice")
        if not all(isinstance(quote, str) for quote in quotes):
            raise ValueError(f"a quote for statement {number} is not text")
        given[number] = [quote for quote in quotes if quote.strip()]
    if missing := sorted(set(range(1, total + 1)) - given.keys()):
        raise ValueError(f"statement {missing[0]} is not answered")
    quotes = [given[number] for number in range(1, total + 1)]
    return {
        "found": [bool(group) for group in quotes],
        "verified": [any(find(quote, trace) for quote in group) for group in quotes],
        "quotes": quotes,
    }
