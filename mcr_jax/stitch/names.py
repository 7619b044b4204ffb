"""Names of diseases in a trace: what no statement gives, and the diagnosis before its turn.

The names that are known are the diagnoses that the cases end in, so more cases find more of them.
"""

import re
from collections.abc import Iterable, Sequence

from mcr_jax.cases import Case
from mcr_jax.stitch import text

Name = tuple[str, ...]  # the stems of its words

_BRACKETS = re.compile(r"\([^)]{0,200}\)|\[[^\]]{0,200}\]")
_SHORTEST = 4  # letters of a diagnosis of one word, "gout": what is shorter is many things
_SHORTEST_INITIALS = 3  # "CT" would be a scan
_ROOT, _ENDING = 6, 4  # least letters of a word's root, most letters of its ending
_EARLY = 0.5  # of the share of the words that the statements take before they name it


class Vocabulary:
    """The diagnoses that a set of cases ends in."""

    def __init__(self, cases: Iterable[Case]):
        self._by_first: dict[str, set[Name]] = {}
        for case in cases:
            name = name_of(case.final_diagnosis)
            if name and (len(name) > 1 or len(name[0]) >= _SHORTEST):
                self._by_first.setdefault(name[0], set()).add(name)

    def find(self, words: Sequence[str]) -> set[Name]:
        """The names in a run of stems; of those that overlap the longest."""
        found, place = set(), 0
        while place < len(words):
            known = self._by_first.get(words[place], ())
            here = [name for name in known if tuple(words[place : place + len(name)]) == name]
            if here:
                longest = max(here, key=len)
                found.add(longest)
                place += len(longest)
            else:
                place += 1
        return found


def name_of(diagnosis: str) -> Name:
    """The stems of a disease's name; articles and what is in brackets are left out."""
    words = text.stems(_BRACKETS.sub(" ", diagnosis)) or text.stems(diagnosis)
    return tuple(word for word in words if word not in ("a", "an", "the"))


def gives(source: str, name: Name) -> bool:
    """Whether a text has all words of a name or others of their roots, or its initials."""
    words = set(text.stems(source))
    initials = _initials(name)
    if len(initials) > 1 and re.search(rf"\b{re.escape(initials)}\b", source):
        return True
    roots = {word[: max(_ROOT, len(word) - _ENDING)] for word in name}
    return all(any(word.startswith(root) for word in words) for root in roots)


def is_early(case: Case, trace: str) -> bool:
    """Whether the trace names the diagnosis well before the statements do.

    Its first sentence with the name counts, against the begin of the statement with the name that
    has most of the sentence's words; of the last statement where none has the name.
    """
    name = name_of(case.final_diagnosis)
    said = text.sentences(_spelled_out(trace, name))
    asked = [text.stems(_spelled_out(statement, name)) for statement in case.statements]
    before = 0
    for sentence in said:
        if name and (place := _place(sentence, name)) is not None:
            break
        before += len(sentence)
    else:
        return False
    words = set(sentence)
    naming = [n for n, statement in enumerate(asked) if set(name) <= set(statement)]
    own = max(naming or [len(asked) - 1], key=lambda n: len(words.intersection(asked[n])))
    turn = sum(map(len, asked[:own])) / sum(map(len, asked))
    return (before + place) / sum(map(len, said)) < _EARLY * turn


def _place(words: Sequence[str], name: Name) -> int | None:
    """The first place where the words of a name follow one another."""
    starts = (n for n, word in enumerate(words) if word == name[0])
    return next((n for n in starts if tuple(words[n : n + len(name)]) == name), None)


def _initials(name: Name) -> str:
    return "".join(word[0] for word in name).upper()


def _spelled_out(told: str, name: Name) -> str:
    """A text with the name in place of its initials."""
    initials = _initials(name)
    if len(initials) < _SHORTEST_INITIALS:
        return told
    return re.sub(rf"\b{re.escape(initials)}\b", lambda _: " ".join(name), told)
