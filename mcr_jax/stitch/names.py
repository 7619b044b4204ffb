"""Names of diseases in running text, found without a dictionary of medicine.

Three sources: the diagnoses that the cases end in, the alternatives that their statements weigh
("X was excluded …", "Exclusion of X — …"), and words that are or end as names of diseases do
("-itis", "-oma", "… syndrome"). What none of them knows is missed; a name that is a finding in its
place ("hematoma") is found, too, and so is a word before "syndrome" or "disease" that is no part of
a name. So a count of added names is rough: most of what it counts are diseases, and it misses more
of them the fewer the cases.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from mcr_jax.cases import Case
from mcr_jax.stitch import lexicon, text

Name = tuple[str, ...]  # the stems of its words

_ENDS = re.compile(
    r"(?:itis|itides|omas?|omata|os[ie]s|iasis|iases|path(?:y|ies)|a?emias?|penias?|trophy|plasias?"
    r"|plegia|rrhagia|rrhea|ectasis|sepsis|abscess(?:es)?)$"
)
# Adjectives made of names: "vasculitic".
_ADJECTIVES = ("itic", "otic", "omatous", "emic", "aemic", "penic", "pathic", "trophic", "plastic")
# What a statement weighs: up to a verb that weighs it, or, where it is but a name, up to a dash.
_WEIGHED = re.compile(
    r"^(?:(?:considered|consideration of|exclusion of|concern for|suspicion of|possibility of)\s+)?"
    r"(?P<names>[^.;:“\"]{3,90}?)\s*"
    r"(?:—|–|\bconsidered (?:and|but)\b"
    r"|\b(?:was|were|is|are|can be|could be|had been)\s+(?:\w+\s+){0,2}?(?:considered|excluded"
    r"|ruled out|unlikely|less likely|favou?red|confirmed|suspected|supported|diagnosed"
    r"|rejected)\b)",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\([^)]{0,200}\)|\[[^\]]{0,200}\]")
_AMONG = re.compile(r",|/|\bor\b|\band\b|\bversus\b", re.IGNORECASE)
_LONGEST = 5  # words of an alternative; more are a finding told at length
_SHORTEST = 4  # letters of a diagnosis of one word, "gout": what is shorter is many things

_GLUE = frozenset(map(text.stem, lexicon.GLUE))


class Vocabulary:
    """The names that a set of cases knows.

    Args:
      cases: those whose diagnoses and alternatives it has.
    """

    def __init__(self, cases: Iterable[Case]):
        self._by_first: dict[str, set[Name]] = {}
        for case in cases:
            self._learn(stems(case.final_diagnosis))
            for statement in case.statements:
                for name in _weighed(statement):
                    self._learn(name)

    def _learn(self, name: Name) -> None:
        if name and (len(name) > 1 or len(name[0]) >= _SHORTEST):
            self._by_first.setdefault(name[0], set()).add(name)

    def find(self, words: Sequence[str]) -> set[Name]:
        """The names in a run of folded words, of those that overlap the longest alone."""
        stemmed, found, place = [text.stem(word) for word in words], set(), 0
        while place < len(words):
            known = self._by_first.get(stemmed[place], ())
            here = [n for n in known if tuple(stemmed[place : place + len(n)]) == n]
            if here:
                longest = max(here, key=len)
                found.add(longest)
                place += len(longest)
                continue
            if _is_name(words[place]):
                found.add((stemmed[place],))
            elif words[place] in lexicon.HEADS and place and _qualifies(words[place - 1]):
                found.add((stemmed[place - 1], stemmed[place]))
            place += 1
        return found


def stems(name: str) -> Name:
    """A disease's name as the stems of its words, articles and what is in brackets left out."""
    outside = _BRACKETS.sub(" ", name)
    return tuple(
        text.stem(word)
        for word in text.words(outside) or text.words(name)
        if word not in ("a", "an", "the")
    )


def forms(name: Name) -> tuple[Name, ...]:
    """`name` and its initials (KTS) unless they make a common word (IT); nothing for no name."""
    initials = "".join(word[0] for word in name)
    if len(name) > 1 and initials not in lexicon.GLUE:
        return name, (initials,)
    return (name,) if name else ()


def accounted(name: Name, source: frozenset[str]) -> bool:
    """Whether `source` (stems of what may be drawn on) gives `name`.

    It does with all its words, in any order; with its initials (SLE); or, for one word, with the
    adjective made of it (vasculitic, vasculitis).
    """
    if source.issuperset(name):
        return True
    if len(name) > 1:
        return any(source.issuperset(form) for form in forms(name))
    root = _ENDS.sub("", name[0])
    return root != name[0] and any(root + ending in source for ending in _ADJECTIVES)


def _weighed(statement: str) -> Iterator[Name]:
    """The alternatives that a statement begins with, if it names any there."""
    if match := _WEIGHED.match(statement):
        for part in _AMONG.split(match["names"]):
            name = stems(part)
            # A word alone may be half a name, or no disease: "Persistent or recurrent frost".
            if len(name) == 1 and not _is_name(text.words(part)[0]):
                continue
            if 0 < len(name) <= _LONGEST and _GLUE.isdisjoint(name):
                yield name


def _is_name(word: str) -> bool:
    if word in lexicon.NAMES:
        return True
    return len(word) > 5 and word not in lexicon.NO_NAMES and _ENDS.search(word) is not None


def _qualifies(word: str) -> bool:
    return word not in lexicon.LOOSE and not word[0].isdigit() and len(word) > 2
