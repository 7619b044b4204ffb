"""The audit of a trace: does it say what the statements say, nothing else, and nothing too soon?

By rules, without a model, so that it can be repeated by anyone on every trace. It reads words, not
meaning: a paraphrase in wholly other words counts as a statement left out.

- A statement is left out if the trace does not make it, as `match.py` tells.
- A name of a disease that statements, presentation and diagnosis do not give is an addition.
- The final diagnosis may be named where the trace makes a statement that names it, after what
  stands before that statement, and concluded where that statement concludes it; from where the last
  statement begins to be made on it may always be.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence

from mcr_jax.cases import Case
from mcr_jax.data.traces import breaks
from mcr_jax.prompts import inert
from mcr_jax.statements import parse_statements
from mcr_jax.stitch import names, text
from mcr_jax.stitch.match import Statement, holds, stance
from mcr_jax.stitch.names import Name, Vocabulary
from mcr_jax.stitch.text import Sentence, stem

VERSION = 1  # counts up when a rule changes

# From the gravest on: a case that fell back to its statements is counted under the first it has.
FAULTS = ("empty", "tags", "list", "short", "long", "dropped", "added", "early")

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a trace must keep to.

    Attributes:
      coverage: least share of the statements that it makes.
      shortest, longest: of its words, as multiples of the statements'.
    """

    coverage: float = 1.0
    shortest: float = 0.5
    longest: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in one trace.

    Attributes:
      missing: numbers of the statements it does not make, from 1.
      coverage: the share that it makes.
      added: names of diseases that nothing gives, by their stems.
      length: its words as a multiple of the statements'.
      faults: some of FAULTS, in their order; empty for a trace that may be trained on.
    """

    missing: tuple[int, ...]
    coverage: float
    added: tuple[str, ...]
    length: float
    faults: tuple[str, ...]


class Auditor:
    """Audits traces of many cases.

    Args:
      cases: what they end in and what they weigh are names to watch for, in a trace of any case.
      limits: what traces must keep to.
    """

    def __init__(self, cases: Collection[Case], limits: Limits):
        self._vocabulary = Vocabulary(cases)
        self._limits = limits

    def audit(self, case: Case, trace: str) -> Audit:
        """Looks for every fault of `trace`, a trace of `case`. Never raises."""
        asked = [Statement(s, self._vocabulary) for s in case.statements]
        said = text.sentences(trace)
        runs = [statement.best(said) for statement in asked]
        missing = tuple(number for number, run in enumerate(runs, 1) if run is None)
        coverage = 1 - len(missing) / len(asked)
        added = self._added(case, said)
        length = len(text.words(trace)) / max(1, len(text.words(" ".join(case.statements))))
        found = {
            "empty": not said,
            "tags": breaks(trace),
            "list": len(parse_statements(trace)) > 1,
            "short": bool(said) and length < self._limits.shortest,
            "long": length > self._limits.longest,
            "dropped": bool(said) and coverage < self._limits.coverage,
            "added": bool(added),
            "early": _early(names.stems(case.final_diagnosis), asked, said, runs),
        }
        faults = tuple(fault for fault in FAULTS if found[fault])
        return Audit(missing=missing, coverage=coverage, added=added, length=length, faults=faults)

    def _added(self, case: Case, said: Sequence[Sentence]) -> tuple[str, ...]:
        found = set().union(*(self._vocabulary.find(sentence.words) for sentence in said))
        if not found:
            return ()
        given = (*case.statements, case.case_prompt, case.final_diagnosis)
        source = frozenset(map(stem, text.words("\n".join(given))))
        return tuple(sorted(" ".join(n) for n in found if not names.accounted(n, source)))


def trace_of(reply: str) -> str:
    """What of a model's reply is the trace: all but the thoughts that some models put first."""
    return _THOUGHTS.sub("", reply).strip()


def joined(case: Case) -> str:
    """The statements one after the other: the trace where none that a model wrote will do.

    A tag that a completion could not hold is made inert.
    """
    lines = (" ".join(statement.split()) for statement in case.statements)
    ended = (line if line.rstrip("\"'”’»)]")[-1:] in ".!?…" else f"{line}." for line in lines)
    trace = " ".join(ended)
    return inert(trace) if breaks(trace) else trace


def _early(
    diagnosis: Name,
    asked: Sequence[Statement],
    said: Sequence[Sentence],
    runs: Sequence[tuple[int, int] | None],
) -> bool:
    """Whether a sentence names or concludes the diagnosis before its turn."""
    if not diagnosis:
        return False
    last = max((run[0] for run in runs if run), default=len(said) - 1)
    for place, sentence in enumerate(said[:last]):
        if not holds(sentence, diagnosis):
            continue
        concludes = stance(diagnosis, [sentence]) > 0
        if not any(
            run
            and run[0] <= place < run[1]
            and statement.has(diagnosis)
            and (statement.concludes(diagnosis) or not concludes)
            and all(r is None or r[0] <= place for r in runs[:number])
            for number, (statement, run) in enumerate(zip(asked, runs, strict=True))
        ):
            return True
    return False
