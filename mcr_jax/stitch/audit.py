"""The audit of a trace by fixed rules: form, length, numbers, names, early diagnosis.

It finds what can be told without reading: a trace that fails is wrong. One that passes may still
leave out a statement or turn its meaning; that is for a judge to tell (`judges/distortion.py`).
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

VERSION = 3  # counts up when a rule changes

# From the gravest on: a case that fell back to its statements is counted under the first it has.
FAULTS = (*("empty", "tags", "wrapped", "list", "short", "long"), *("lost", "added", "early"))

_OFTEN_IN_WORDS = {"0", "1"}  # "none of", "a week"
_INTRODUCTION = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\b[,!.]?\s*)?here(?:'s|’s| is)\b[^\n]{0,80}:[ \t]*\n+",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Least and most words of a trace, as multiples of the statements'."""

    shortest: float = 0.5
    longest: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in one trace.

    Attributes:
      lost: numbers of the statements that it does not have.
      added: numbers that the statements do not have, and diagnoses of other cases (by their stems)
        that neither statements, presentation nor diagnosis give.
      length: its words as a multiple of the statements'.
      faults: some of FAULTS, in their order; empty for a trace that passes.
    """

    lost: tuple[str, ...]
    added: tuple[str, ...]
    length: float
    faults: tuple[str, ...]


class Auditor:
    """Audits traces of many cases.

    Args:
      cases: the diagnoses they end in are names to watch for, in a trace of any case.
      limits: what traces must keep to.
    """

    def __init__(self, cases: Collection[Case], limits: Limits):
        self._vocabulary = names.Vocabulary(cases)
        self._limits = limits

    def audit(self, case: Case, trace: str) -> Audit:
        """Looks for every fault of `trace`, a trace of `case`. Never raises."""
        source = "\n".join(case.statements)
        said = text.stems(trace)
        length = len(said) / max(1, len(text.stems(source)))
        lost = text.numbers(source) - text.numbers(trace, in_words=True) - _OFTEN_IN_WORDS
        added = text.numbers(trace) - text.numbers(source, in_words=True) - _OFTEN_IN_WORDS
        given = f"{source}\n{case.case_prompt}\n{case.final_diagnosis}"
        added |= {" ".join(n) for n in self._vocabulary.find(said) if not names.gives(given, n)}
        found = {
            "empty": not said,
            "tags": breaks(trace),
            "wrapped": is_wrapped(trace, source),
            "list": is_list(trace),
            "short": bool(said) and length < self._limits.shortest,
            "long": length > self._limits.longest,
            "lost": bool(said) and bool(lost),
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
    """What of a model's reply is the trace.

    Without the thoughts that some models put first, nor a line like "Here is the passage:".
    """
    return _INTRODUCTION.sub("", after_thoughts(reply).strip()).strip()


def joined(case: Case) -> str:
    """The statements one after the other: the trace where none that a model wrote will do.

    A tag that a completion could not hold is made inert.
    """
    lines = (" ".join(statement.split()) for statement in case.statements)
    ended = (line if line.rstrip("\"'”’»)]")[-1:] in ".!?…" else f"{line}." for line in lines)
    trace = " ".join(ended)
    return inert(trace) if breaks(trace) else trace
