"""The distortion judge: does a stitched trace say what the clinician's statements say, and no more?

In: a case's numbered statements and one trace, in one request. Out: per statement whether it is
kept, turned or missing, with a quote of the trace; and quotes of what no statement says.
"""

import dataclasses
from typing import Any

from mcr_jax.cases import Case
from mcr_jax.generate.api import Request
from mcr_jax.judges import _reply, reasons
from mcr_jax.prompts import Prompt
from mcr_jax.quotes import Text

PROMPT = "judge_distortion"
READING = "distortion/1"  # counts up when `parse` changes: stored replies are then parsed again
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
    """Makes the question about one trace; the arguments are those of `reasons.request`."""
    asked = reasons.request(key, case, trace, prompt, **settings)
    return dataclasses.replace(asked, schema=SCHEMA)


def parse(request: Request, text: str) -> dict[str, list[str]]:
    """Reads the verdict.

    A quote counts as it does in `reasons.parse`.

    Returns:
      `verdicts`: one of VERDICTS per statement, in their order; one that is kept without a quote
        that counts is missing.
      `quotes`: as given, one per statement.
      `added`: the quotes of what was added that stand in the trace and in no statement.

    Raises:
      ValueError: the text is not of the asked form, or a statement's number is missing, repeated or
        out of range.
    """
    statements, least = request.fields["statements"], request.fields["quote_words"]
    entries, added = _reply.fields(
        _reply.unwrap(_reply.read(text), dict), statements=list, added=list
    )
    if not all(isinstance(quote, str) for quote in added):
        raise ValueError("a quote of what was added is not text")
    shown, source = Text(request.fields["trace"]), Text("\n".join(statements))
    verdicts, quotes = [], []
    answers = _reply.by_number(entries, len(statements), verdict=str, quote=str)
    for statement, (verdict, quote) in zip(statements, answers, strict=True):
        if verdict not in VERDICTS:
            raise ValueError(f"a verdict is none of {', '.join(VERDICTS)}")
        shows = verdict != KEPT or shown.verifies(quote, statement, least)
        verdicts.append(verdict if shows else MISSING)
        quotes.append(quote)
    added = [quote for quote in added if shown.find(quote) and not source.find(quote)]
    return {"verdicts": verdicts, "quotes": quotes, "added": added}


def share(verdict: dict[str, Any], word: str) -> float:
    """Share of the statements that got the verdict `word`, one of VERDICTS."""
    return verdict["verdicts"].count(word) / max(1, len(verdict["verdicts"]))
