"""Names of diseases in running text, found without a dictionary of medicine.

Two sources: the diagnoses that the cases themselves end in, and words that end as names of diseases
do ("-itis", "-oma", "… syndrome"). What neither knows ("stroke" where no case ends in one) is
missed; a name that is a finding in its place ("edema", "Crohn-like disease") is found, too. So a
count of added names is a lower bound for diseases and counts some added findings with them.
"""

import re
from collections.abc import Iterable, Sequence

from mcr_jax.stitch import lexicon, text

Name = tuple[str, ...]  # the stems of its words

_ENDS = re.compile(
    r"(?:itis|itides|omas?|omata|os[ie]s|iasis|iases|path(?:y|ies)|a?emias?|penias?|trophy|plasias?"
    r"|plegia|rrhagia|rrhea|ectasis|sepsis|abscess(?:es)?)$"
)
_SHORTEST = 4  # letters of a diagnosis of one word, "gout": what is shorter is many things


class Vocabulary:
    """The names that a set of cases knows.

    Args:
      diagnoses: what its cases end in, as published.
    """

    def __init__(self, diagnoses: Iterable[str]):
        self._by_first: dict[str, set[Name]] = {}
        for diagnosis in diagnoses:
            if name := stems(diagnosis):
                if len(name) == 1 and len(name[0]) < _SHORTEST:
                    continue
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
    outside = re.sub(r"\([^)]*\)|\[[^\]]*\]", " ", name)
    return tuple(
        text.stem(word)
        for word in text.words(outside) or text.words(name)
        if word not in ("a", "an", "the")
    )


def accounted(name: Name, source: frozenset[str]) -> bool:
    """Whether `source` (stems of what may be drawn on) gives `name`.

    It does with all its words, in any order; with its initials (SLE); or, for one word, with a word
    of the same root (vasculitic, vasculitis).
    """
    if source.issuperset(name):
        return True
    if len(name) > 1:
        return "".join(word[0] for word in name) in source
    root = _ENDS.sub("", name[0])
    return len(root) >= _SHORTEST and any(word.startswith(root) for word in source)


def _is_name(word: str) -> bool:
    return len(word) > 5 and word not in lexicon.NO_NAMES and _ENDS.search(word) is not None


def _qualifies(word: str) -> bool:
    return word not in lexicon.LOOSE and not word[0].isdigit() and len(word) > 2
