"""Reasons judge: finds the clinician's statements in a trace.

In: a case's numbered statements and one trace, in one request. Out: per statement the quotes of the
judge, whether there are any (`found`), and whether the trace contains one of them (`verified`).
"""

import re
from typing import Any

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply
from mcr_jax.prompts import Prompt, inert
from mcr_jax.quotes import Text, normal

PROMPT = "judge_reasons"
READING = "reasons/2"  # incremented when `parse` changes: stored replies are then parsed again
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
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_MAX_NONE_CHARS = 40  # of a phrase in _NONE, with punctuation
# Phrases for "no quote", without punctuation.
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
    """Returns the request for a verdict on one trace.

    Args:
      key: name of the request within the run.
      case: holds the clinician's statements.
      trace: reasoning of the completion.
      prompt: takes `statements`, one numbered line each, and `trace`.
      quote_words: fewest words of a quote that verifies a longer statement.
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
    """Parses a reply.

    Returns:
      Three lists with one entry per statement, in order. `quotes`: the quotes, without phrases for
      "none" such as "N/A" and "-". `found`: True if there are any. `verified`: True if one of them
      is in the trace (`quotes.Text.verifies`).

    Raises:
      ValueError: the text violates SCHEMA, or a statement's number is missing, repeated or out of
        range.
    """
    statements, quote_words = request.fields["statements"], request.fields["quote_words"]
    entries = _reply.unwrap(_reply.read(text), list)
    if not isinstance(entries, list):
        raise ValueError("expected a list")
    quotes = []
    for number, (group,) in enumerate(_reply.by_number(entries, len(statements), quotes=list), 1):
        if not all(isinstance(quote, str) for quote in group):
            raise ValueError(f"a quote for statement {number} is not text")
        quotes.append([quote for quote in group if not _is_none(quote)])
    searched = Text(request.fields["trace"])
    return {
        "found": [bool(group) for group in quotes],
        "verified": [
            any(searched.verifies(quote, statement, quote_words) for quote in group)
            for group, statement in zip(quotes, statements, strict=True)
        ],
        "quotes": quotes,
    }


def _is_none(quote: str) -> bool:
    """Returns True for a phrase that means "no quote"."""
    if len(quote) > _MAX_NONE_CHARS and _LETTER_OR_DIGIT.search(quote):
        return False
    phrase = re.sub(r"[\W_]+", " ", normal(quote)).strip()
    return not phrase or phrase in _NONE
