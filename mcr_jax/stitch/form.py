"""Checks that a trace is a plain passage: no list, no markup, no remarks about the reply.

Phrases that the statements contain are allowed.
"""

import re

from mcr_jax.statements import parse_statements

_ITEM = re.compile(
    r"^[ \t]*(?:[-*•·▪‣◦–—][ \t]+|#+[ \t]|\d{1,2}[ \t]?[-:.)][ \t]"
    r"|(?:statement|point|reason)[ \t]+\d)",
    re.IGNORECASE | re.MULTILINE,
)
_INTRODUCED = re.compile(r"\A[^\n]{0,200}:[ \t]*(?:\n|\Z)")  # "Here is the passage:"
_MARKUP = re.compile(
    r"\*\*|__|```|\\boxed|<\||\|>|\[/?inst\]|</?\s*statements?\b|[<＜]\s*+/?\s*+(?:answer|think)",
    re.IGNORECASE,
)
_ABOUT_ITSELF = re.compile(
    r"\b(?:the|these|those|this|each|all|your|clinician['’]?s?|numbered|given|provided)\s+"
    r"(?:numbered\s+)?statements?\b"
    r"|\bstatement\s+(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|\bthe\s+clinicians?\b"
    r"|\b(?:this|the|following|above|rewritten|requested)\s+(?:rewritten\s+)?passage\b(?!\s+of)"
    r"|\brewritten\b|\bas\s+requested\b|\bas\s+an\s+ai\b|\blanguage\s+model\b"
    r"|\bi\s+(?:cannot|can't|am\s+unable|have\s+(?:rewritten|kept|added))\b|\bi\s+kept\b"
    r"|\b(?:final\s+answer|answer|note|explanation|output|passage|reasoning)\s*:"
    r"|^[^\S\n]*+(?:sure|certainly|of\s+course|okay)\b[,!.]"
    r"|\b(?:previous|above)\s+instructions\b|\bsystem\s+prompt\b",
    re.IGNORECASE | re.MULTILINE,
)


def is_list(trace: str) -> bool:
    """Returns True if `trace` has list items or a heading."""
    return len(parse_statements(trace)) > 1 or _ITEM.search(trace) is not None


def is_wrapped(trace: str, statements: str) -> bool:
    """Returns True if `trace` has an introduction, markup, or remarks about itself."""
    if _INTRODUCED.match(trace):
        return True
    known = " ".join(statements.casefold().split())
    found = (m[0] for pattern in (_MARKUP, _ABOUT_ITSELF) for m in pattern.finditer(trace))
    return any(" ".join(phrase.casefold().split()) not in known for phrase in found)
