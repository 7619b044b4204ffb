"""Distortion judge: compares a stitched trace with the clinician's statements.

In: a case's numbered statements and one trace, in one request. Out: per statement "kept", "turned"
(its meaning changed) or "missing", with a quote of the trace; and quotes of additions.
"""

import dataclasses
from typing import Any

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply, reasons
from mcr_jax.prompts import Prompt
from mcr_jax.quotes import Text

STAGE = "distortion"  # of its verdicts in the ledger
PROMPT = "judge_distortion"
READING = "distortion/1"  # incremented when `parse` changes: stored replies are then parsed again
VERDICTS = KEPT, TURNED, MISSING = "kept", "turned", "missing"
_ENTRY = {
    "number": {"type": "integer"},
    "verdict": {"type": "string", "enum": list(VERDICTS)},
    "quote": {"type": "string"},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "statements": {
            "type": "array",
            "items": {"type": "object", "properties": _ENTRY, "required": list(_ENTRY)},
        },
        "added": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["statements", "added"],
}


def request(key: str, case: Case, trace: str, prompt: Prompt, **settings: int) -> Request:
    """Returns the request for a verdict on one trace; arguments as in `reasons.request`."""
    request = reasons.request(key, case, trace, prompt, **settings)
    return dataclasses.replace(request, schema=SCHEMA)


def parse(request: Request, text: str) -> dict[str, list[str]]:
    """Parses a reply. Quotes are verified as in `reasons.parse`.

    Returns:
      `verdicts`: one of VERDICTS per statement, in order; KEPT without a verified quote becomes
        MISSING.
      `quotes`: one per statement, as given.
      `added`: quotes of additions that the trace contains and no statement does.

    Raises:
      ValueError: the text violates SCHEMA, or a statement's number is missing, repeated or out of
        range.
    """
    statements, quote_words = request.fields["statements"], request.fields["quote_words"]
    entries, added = _reply.fields(
        _reply.unwrap(_reply.read(text), dict), statements=list, added=list
    )
    if not all(isinstance(quote, str) for quote in added):
        raise ValueError("a quote of an addition is not text")
    searched, source = Text(request.fields["trace"]), Text("\n".join(statements))
    verdicts, quotes = [], []
    answers = _reply.by_number(entries, len(statements), verdict=str, quote=str)
    for statement, (verdict, quote) in zip(statements, answers, strict=True):
        if verdict not in VERDICTS:
            raise ValueError(f"a verdict is not one of {', '.join(VERDICTS)}")
        verified = verdict != KEPT or searched.verifies(quote, statement, quote_words)
        verdicts.append(verdict if verified else MISSING)
        quotes.append(quote)
    added = [quote for quote in added if searched.find(quote) and not source.find(quote)]
    return {"verdicts": verdicts, "quotes": quotes, "added": added}


def share(verdict: dict[str, Any], word: str) -> float:
    """Returns the share of the statements with the verdict `word`, one of VERDICTS."""
    return verdict["verdicts"].count(word) / max(1, len(verdict["verdicts"]))
