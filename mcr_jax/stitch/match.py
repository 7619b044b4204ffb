"""Whether a trace makes a statement: the words of one in a few sentences of the other.

A statement is made by a run of at most one sentence more than it has itself, if that run holds

1. every number and every disease that the statement names,
2. at least `SHARE` of its other words of content, denied where it denies them; `WIDE_SHARE` if the
   run has more sentences than the statement,
3. no word of it denied that it does not deny, or the other way round, and no opposite (left for
   right, high for low), unless the statement's own word is there as well, and
4. of its diseases none affirmed that it excludes, nor excluded that it affirms.
"""

import functools
from collections.abc import Sequence

from mcr_jax.stitch import lexicon, text
from mcr_jax.stitch.names import Name, Vocabulary
from mcr_jax.stitch.text import Sentence, stem

SHARE, WIDE_SHARE = 0.6, 0.75

_GLUE = frozenset(map(stem, lexicon.GLUE))
_OPPOSITES = tuple(
    (stem(one[0]), stem(other[0]))
    for pair in lexicon.OPPOSITES
    for one, other in (pair, pair[::-1])
)


class Statement:
    """A statement as it is looked for."""

    def __init__(self, statement: str, vocabulary: Vocabulary):
        self.sentences = text.sentences(statement)
        run = _Run(self.sentences)
        self.names = vocabulary.find([w for s in self.sentences for w in s.words])
        self._numbers = run.numbers
        apart = _GLUE.union(*self.names)  # names have their stances
        self._plain, self._denied = run.plain - apart, run.denied - apart
        self._all = run.plain | run.denied
        self._stances = {name: stance(name, self.sentences) for name in self.names}

    def best(self, said: Sequence[Sentence]) -> tuple[int, int] | None:
        """Start and end of the shortest run of sentences that makes the statement best, if any."""
        found, best = None, 0.0
        for size in range(1, len(self.sentences) + 2):
            for start in range(len(said) - size + 1):
                share = self._share(said[start : start + size])
                if share > best:
                    found, best = (start, start + size), share
        return found

    def _share(self, said: Sequence[Sentence]) -> float:
        """The share of its words of content in `said`; 0 where that does not make it."""
        run = _Run(said)
        words = run.plain | run.denied
        if not self._numbers <= run.numbers or not all(words.issuperset(n) for n in self.names):
            return 0.0
        if (self._denied - self._plain) & (run.plain - run.denied):
            return 0.0
        if (self._plain - self._denied) & (run.denied - run.plain):
            return 0.0
        for one, other in _OPPOSITES:
            if one in self._all - words and other in words - self._all:
                return 0.0
        for name, here in self._stances.items():
            if here and here + stance(name, said) == 0:
                return 0.0
        content = self._plain | self._denied
        if not content:
            return 1.0
        share = len(self._plain & run.plain | self._denied & run.denied) / len(content)
        wanted = SHARE if len(said) <= len(self.sentences) else WIDE_SHARE
        return share if share >= wanted else 0.0

    def concludes(self, name: Name) -> bool:
        """Whether it affirms `name`."""
        return stance(name, self.sentences) > 0

    def has(self, name: Name) -> bool:
        """Whether it names `name`."""
        return any(holds(sentence, name) for sentence in self.sentences)


class _Run:
    """Some sentences taken together."""

    def __init__(self, said: Sequence[Sentence]):
        self.plain = frozenset().union(*(s.stems for s in said))
        self.denied = frozenset().union(*(s.denied for s in said))
        self.numbers = frozenset().union(*(s.numbers for s in said))


def stance(name: Name, said: Sequence[Sentence]) -> int:
    """1 where a clause affirms `name` and none excludes it, -1 the other way round, else 0."""
    return _clause_stances(name, tuple(clause for s in said for clause in s.clauses))


@functools.lru_cache(4096)  # a run of one is part of the runs of two
def _clause_stances(name: Name, clauses: tuple[tuple[str, ...], ...]) -> int:
    affirmed = excluded = False
    for clause in clauses:
        if not {stem(word) for word in clause}.issuperset(name):
            continue
        out = not lexicon.EXCLUDES.isdisjoint(clause)
        excluded |= out
        affirmed |= not out and not lexicon.AFFIRMS.isdisjoint(clause)
    return affirmed - excluded


def holds(sentence: Sentence, name: Name) -> bool:
    """Whether a sentence has all words of a name."""
    return (sentence.stems | sentence.denied).issuperset(name)
