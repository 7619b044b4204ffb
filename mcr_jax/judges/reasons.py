"""The reasons judge: which of the clinician's statements does a trace make?

In: a case's numbered statements and one trace, in one request. Out: per statement the quotes that
the judge gave, whether it gave any, and whether any of them really stands in the trace.
"""

import re
from typing import Any

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply
from mcr_jax.prompts import Prompt, inert
from mcr_jax.quotes import Text, normal

PROMPT = "judge_reasons"
READING = "reasons/2"  # counts up when `parse` changes: stored replies are then parsed again
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
_READ = re.compile(r"[^\W_]")  # a letter or a digit
_LONGEST_NONE = 40  # characters of what says so, with punctuation
# What judges write where there is no quote, without its punctuation.
_NONE = {
    *("n a", "na", "none", "nil", "null", "no", "nothing", "absent", "missing", "no match"),
    *("no quote", "no quotes", "no quote found", "no quotes found", "quote not found"),
    *("no relevant quote", "no relevant quotes", "no matching quote", "no mention", "no evidence"),
    *("none found", "not found", "not mentioned", "not stated", "not present", "not addressed"),
    *("not available", "not applicable", "not found in the trace", "not in the trace"),
    "not mentioned in the trace",
}


def request(
    key: str,
    case: Case,
    trace: str,
    prompt: Prompt,
    *,
    quote_words: int = 4,
    max_tokens: int = 16_384,
) -> Request:
    """Request for a verdict on one trace.

    Args:
      key: names the request within the run.
      case: gives the clinician's statements.
      trace: the reasoning of the completion.
      prompt: takes `statements`, one numbered line each, and `trace`.
      quote_words: words of the shortest quote that can verify a longer statement.
      max_tokens: limit of the reply, thoughts included.
    """
    lines = (f"{n}. {' '.join(s.split())}" for n, s in enumerate(case.statements, start=1))
    text = prompt.render(statements=inert("\n".join(lines)), trace=inert(trace))
    return Request(
        key=key,
        messages=({"role": "user", "content": text},),
        max_tokens=max_tokens,
        schema=SCHEMA,
        fields={"statements": case.statements, "trace": trace, "quote_words": quote_words},
    )


def parse(request: Request, text: str) -> dict[str, list[Any]]:
    """Reads the verdict, each list with one entry per statement in their order.

    Returns:
      `quotes`: those given, less what says that there is none ("N/A", "-"); `found`: whether there
      are any; `verified`: whether any of them stands in the trace, as `quotes.Text.find` compares,
      and has `quote_words` words, or as many as the statement where that has fewer.

    Raises:
      ValueError: the text is not of the asked form, or a statement's number is missing, repeated or
        out of range.
    """
    statements, least = request.fields["statements"], request.fields["quote_words"]
    entries = _reply.unwrap(_reply.read(text), list)
    if not isinstance(entries, list):
        raise ValueError("expected a list")
    quotes = []
    for number, (group,) in enumerate(_reply.by_number(entries, len(statements), quotes=list), 1):
        if not all(isinstance(quote, str) for quote in group):
            raise ValueError(f"a quote for statement {number} is not text")
        quotes.append([quote for quote in group if not _is_none(quote)])
    shown = Text(request.fields["trace"])
    return {
        "found": [bool(group) for group in quotes],
        "verified": [
            any(shown.verifies(quote, statement, least) for quote in group)
            for group, statement in zip(quotes, statements, strict=True)
        ],
        "quotes": quotes,
    }


def _is_none(quote: str) -> bool:
    """Whether a quote says that there is none."""
    if len(quote) > _LONGEST_NONE and _READ.search(quote):
        return False
    said = re.sub(r"[\W_]+", " ", normal(quote)).strip()
    return not said or said in _NONE
