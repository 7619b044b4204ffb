"""Audits a trace by fixed rules: form, length, numbers, names, early diagnosis.

A trace that fails is wrong. One that passes may still leave out a statement or change its meaning;
`judges/distortion.py` checks that.
"""

import dataclasses
import re
from collections.abc import Collection

from mcr_jax.cases import Case
from mcr_jax.completion import after_thoughts
from mcr_jax.data.traces import breaks
from mcr_jax.prompts import inert
from mcr_jax.stitch import names, text
from mcr_jax.stitch.form import is_list, is_wrapped

VERSION = 3  # incremented when a rule changes

# Most serious first: a case that fell back to its statements is counted under its first fault.
FAULTS = (*("empty", "tags", "wrapped", "list", "short", "long"), *("lost", "added", "early"))

_OFTEN_IN_WORDS = {"0", "1"}  # such as "none of", "a week"
_INTRODUCTION = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\b[,!.]?\s*)?here(?:'s|’s| is)\b[^\n]{0,80}:[ \t]*\n+",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Smallest and largest length of a trace, in words per word of the statements."""

    shortest: float = 0.5
    longest: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Findings in one trace.

    Attributes:
      lost: numbers of the statements that the trace lacks.
      added: numbers that the statements lack, and diagnoses of other cases (as stems) that neither
        statements, presentation nor diagnosis contain.
      length: words of the trace per word of the statements.
      faults: a subset of FAULTS, in their order; empty for a trace that passes.
    """

    lost: tuple[str, ...]
    added: tuple[str, ...]
    length: float
    faults: tuple[str, ...]


class Auditor:
    """Audits traces of many cases.

    Args:
      cases: their diagnoses are the names to look for, in a trace of any case.
      limits: allowed lengths of a trace.
    """

    def __init__(self, cases: Collection[Case], limits: Limits):
        self._vocabulary = names.Vocabulary(cases)
        self._limits = limits

    def audit(self, case: Case, trace: str) -> Audit:
        """Returns the findings in `trace`, a trace of `case`. Never raises."""
        source = "\n".join(case.statements)
        stems = text.stems(trace)
        length = len(stems) / max(1, len(text.stems(source)))
        lost = text.numbers(source) - text.numbers(trace, in_words=True) - _OFTEN_IN_WORDS
        added = text.numbers(trace) - text.numbers(source, in_words=True) - _OFTEN_IN_WORDS
        given = f"{source}\n{case.case_prompt}\n{case.final_diagnosis}"
        added |= {" ".join(n) for n in self._vocabulary.find(stems) if not names.gives(given, n)}
        found = {
            "empty": not stems,
            "tags": breaks(trace),
            "wrapped": is_wrapped(trace, source),
            "list": is_list(trace),
            "short": bool(stems) and length < self._limits.shortest,
            "long": length > self._limits.longest,
            "lost": bool(stems) and bool(lost),
            "added": bool(added),
            "early": names.is_early(case, trace),
        }
        return Audit(
            lost=tuple(sorted(lost)),
            added=tuple(sorted(added)),
            length=length,
            faults=tuple(fault for fault in FAULTS if found[fault]),
        )


def trace_of(reply: str) -> str:
    """Returns the trace in a reply, without thoughts or a line like "Here is the passage:"."""
    return _INTRODUCTION.sub("", after_thoughts(reply).strip()).strip()


def joined(case: Case) -> str:
    """Joins the statements as plain sentences: the fallback where no written trace passes.

    Makes tags inert that would break a completion.
    """
    lines = (" ".join(statement.split()) for statement in case.statements)
    ended = (line if line.rstrip("\"'”’»)]")[-1:] in ".!?…" else f"{line}." for line in lines)
    trace = " ".join(ended)
    return inert(trace) if breaks(trace) else trace
