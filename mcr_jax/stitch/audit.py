"""The audit of a trace: does it say what the statements say, nothing else, and nothing too soon?

By rules, without a model, so that it can be repeated by anyone on every trace. It reads words, not
meaning: a paraphrase in wholly other words counts as a statement left out.

- A statement is left out if the trace does not make it, as `match.py` tells.
- An addition is a name of a disease that statements, presentation and diagnosis do not give, or a
  number in digits that the statements do not give.
- A disease is turned if the trace, wherever, concludes one that the statements do not conclude, or
  excludes one that they do not exclude. The final diagnosis may be concluded, never excluded.
- The final diagnosis comes early if a sentence names it that makes no statement which names it, or
  concludes it where the statement does not. Of a sentence that makes a statement all before that
  must have been begun. From where the last statement begins to be made nothing is early.

Of denials made affirmations, exclusions made considerations and the like, in the joined statements
of sixteen published cases, about 19 in 20 are found; one is missed where a statement says the same
twice, or speaks of "other causes" only. The rules were made with these cases in view.

What is added in words alone is not seen: a finding without number or disease, a treatment, a flat
contradiction of a finding beside its right telling. Nor are units, signs, whose value a number is,
or the order of statements that do not touch the diagnosis.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence

from mcr_jax.cases import Case
from mcr_jax.completion import after_thoughts
from mcr_jax.data.traces import breaks
from mcr_jax.prompts import inert
from mcr_jax.stitch import names, text
from mcr_jax.stitch.form import is_list, is_wrapped
from mcr_jax.stitch.match import Run, Statement, holds, runs
from mcr_jax.stitch.names import Name, Vocabulary
from mcr_jax.stitch.stance import CONCLUDED, EXCLUDED, PERHAPS, WEIGHED, announces, stances
from mcr_jax.stitch.text import Sentence, stem

VERSION = 2  # counts up when a rule changes

# From the gravest on: a case that fell back to its statements is counted under the first it has.
FAULTS = (
    *("empty", "tags", "wrapped", "list", "short", "long"),
    *("dropped", "turned", "added", "early"),
)

_INTRODUCTION = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\b[,!.]?\s*)?here(?:'s|’s| is)\b[^\n]{0,80}:[ \t]*\n+",
    re.IGNORECASE,
)


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
      added: names of diseases that nothing gives, by their stems, and numbers.
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
        made = runs(asked, said)
        missing = tuple(number for number, run in enumerate(made, 1) if run is None)
        coverage = 1 - len(missing) / len(asked)
        added = self._added(case, said)
        diagnosis = names.stems(case.final_diagnosis)
        source = " ".join(case.statements)
        length = len(text.words(trace)) / max(1, len(text.words(source)))
        found = {
            "empty": not said,
            "tags": breaks(trace),
            "wrapped": is_wrapped(trace, source),
            "list": is_list(trace),
            "short": bool(said) and length < self._limits.shortest,
            "long": length > self._limits.longest,
            "dropped": bool(said) and coverage < self._limits.coverage,
            "turned": self._turned(diagnosis, asked, said),
            "added": bool(added),
            "early": _early(diagnosis, asked, said, made),
        }
        faults = tuple(fault for fault in FAULTS if found[fault])
        return Audit(missing=missing, coverage=coverage, added=added, length=length, faults=faults)

    def _added(self, case: Case, said: Sequence[Sentence]) -> tuple[str, ...]:
        stated = "\n".join(case.statements)
        numbers = frozenset().union(*(s.numbers for s in text.sentences(stated)))
        new = frozenset().union(*(s.digits for s in said)) - numbers
        found = set().union(*(self._vocabulary.find(sentence.words) for sentence in said))
        if found:
            given = (stated, case.case_prompt, case.final_diagnosis)
            source = frozenset(map(stem, text.words("\n".join(given))))
            new |= {" ".join(n) for n in found if not names.accounted(n, source)}
        return tuple(sorted(new))

    def _turned(
        self, diagnosis: Name, asked: Sequence[Statement], said: Sequence[Sentence]
    ) -> bool:
        """Whether the trace takes a stance toward a disease that no statement takes."""
        watched = set().union(*(self._vocabulary.find(sentence.words) for sentence in said))
        watched |= {diagnosis} if diagnosis else set()
        everything = [sentence for statement in asked for sentence in statement.sentences]
        here, there = stances(watched, everything), stances(watched, said)
        return any(
            _turns(here[name], there[name], is_diagnosis=name == diagnosis) for name in watched
        )


def _turns(here: frozenset[str], there: frozenset[str], *, is_diagnosis: bool) -> bool:
    may_conclude = is_diagnosis or not here.isdisjoint((CONCLUDED, PERHAPS[CONCLUDED]))
    if CONCLUDED in there and not may_conclude:
        return True
    if EXCLUDED not in there or not here.isdisjoint((EXCLUDED, PERHAPS[EXCLUDED])):
        return False
    # A name that stands alone, its evidence behind it, may be said to be excluded by that.
    return is_diagnosis or bool(here & {WEIGHED, CONCLUDED})


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


def _early(
    diagnosis: Name,
    asked: Sequence[Statement],
    said: Sequence[Sentence],
    made: Sequence[Run | None],
) -> bool:
    """Whether a sentence names or concludes the diagnosis before its turn."""
    last = max((run[0] for run in made if run), default=len(said) - 1)
    forms = names.forms(diagnosis)
    for place, sentence in enumerate(said[:last]):
        here = [asked[number] for number in _made_at(place, made)]
        for form in forms:
            if holds(sentence, form) and not _may_say(form, sentence, here):
                return True
        if announces(sentence) and not any(map(announces, (s for h in here for s in h.sentences))):
            return True
    return False


def _made_at(place: int, made: Sequence[Run | None]) -> Iterator[int]:
    """The statements that the sentence at `place` makes, all before them begun by then."""
    for number, run in enumerate(made):
        if (
            run
            and run[0] <= place < run[1]
            and all(r is None or r[0] <= place for r in made[:number])
        ):
            yield number


def _may_say(name: Name, sentence: Sentence, here: Sequence[Statement]) -> bool:
    """Whether one of the statements made `here` says of `name` what the sentence says."""
    concludes = CONCLUDED in stances([name], [sentence])[name]
    return any(s.has(name) and (s.concludes(name) or not concludes) for s in here)
