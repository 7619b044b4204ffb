"""Finds disease names in a trace: names that the case does not contain, and an early diagnosis.

The known names are the diagnoses of the cases, so more cases make more names known.
"""

import re
from collections.abc import Iterable, Sequence

from mcr_jax.cases import Case
from mcr_jax.stitch import text

Name = tuple[str, ...]  # stems of the words of a disease's name

_BRACKETS = re.compile(r"\([^)]{0,200}\)|\[[^\]]{0,200}\]")
_MIN_NAME_LETTERS = 4  # of a one-word diagnosis such as "gout"; shorter words are ambiguous
_MIN_INITIALS = 3  # "CT" would be a scan
_MIN_ROOT_LETTERS, _MAX_ENDING_LETTERS = 6, 4  # of a word
_EARLY_SHARE = 0.5  # a name before this share of its position in the statements is early


class Vocabulary:
    """Diagnoses of a set of cases, to be found in texts."""

    def __init__(self, cases: Iterable[Case]):
        self._by_first: dict[str, set[Name]] = {}
        for case in cases:
            name = name_of(case.final_diagnosis)
            if name and (len(name) > 1 or len(name[0]) >= _MIN_NAME_LETTERS):
                self._by_first.setdefault(name[0], set()).add(name)

    def find(self, words: Sequence[str]) -> set[Name]:
        """Returns the names in a sequence of stems; of overlapping names the longest."""
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
    """Returns the stems of a disease's name, without articles and text in brackets."""
    words = text.stems(_BRACKETS.sub(" ", diagnosis)) or text.stems(diagnosis)
    return tuple(word for word in words if word not in ("a", "an", "the"))


def gives(source: str, name: Name) -> bool:
    """Returns True if a text has the initials of a name, or the roots of all its words."""
    words = set(text.stems(source))
    initials = _initials(name)
    if len(initials) > 1 and re.search(rf"\b{re.escape(initials)}\b", source):
        return True
    roots = {word[: max(_MIN_ROOT_LETTERS, len(word) - _MAX_ENDING_LETTERS)] for word in name}
    return all(any(word.startswith(root) for word in words) for root in roots)


def is_early(case: Case, trace: str) -> bool:
    """Returns True if the trace names the diagnosis much earlier than the statements do.

    Compares the first sentence that has the name with the statement that has the name and shares
    most words with the sentence, or with the last statement if none has the name.
    """
    name = name_of(case.final_diagnosis)
    sentences = text.sentences(_spelled_out(trace, name))
    statements = [text.stems(_spelled_out(statement, name)) for statement in case.statements]
    before = 0
    for sentence in sentences:
        if name and (place := _place(sentence, name)) is not None:
            break
        before += len(sentence)
    else:
        return False
    words = set(sentence)
    naming = [n for n, statement in enumerate(statements) if set(name) <= set(statement)]
    last = len(statements) - 1
    closest = max(naming or [last], key=lambda n: len(words.intersection(statements[n])))
    due = sum(map(len, statements[:closest])) / sum(map(len, statements))
    return (before + place) / sum(map(len, sentences)) < _EARLY_SHARE * due


def _place(words: Sequence[str], name: Name) -> int | None:
    """Returns the first index of the name in `words`, or None."""
    starts = (n for n, word in enumerate(words) if word == name[0])
    return next((n for n in starts if tuple(words[n : n + len(name)]) == name), None)


def _initials(name: Name) -> str:
    return "".join(word[0] for word in name).upper()


def _spelled_out(passage: str, name: Name) -> str:
    """Replaces the initials of a name by the name."""
    initials = _initials(name)
    if len(initials) < _MIN_INITIALS:
        return passage
    return re.sub(rf"\b{re.escape(initials)}\b", lambda _: " ".join(name), passage)
