"""Whether a trace makes a statement: the words of one in a few sentences of the other.

Each statement looks among the sentences that are not another's: one that makes another statement
by its words alone, and not this one, is closed to it. Else the next statement's "negative" would
answer for a "positive" in this one's place. What is left makes it in a run of at most one sentence
more than it has itself, if that run holds

1. every number of the statement and every disease that it says something of; one that it only
   mentions may stand elsewhere in the trace,
2. at least `SHARE` of its words of content, denied where it denies them; `WIDE_SHARE` if the run
   has more sentences than the statement,
3. no word of it denied that it does not deny, or the other way round, and no opposite (left for
   right, high for low), unless the statement's own word is there as well; and each of its denials
   once more, unless what it denies is not there at all, and
4. of its diseases, or where it names none of what it is about, nothing but what it says: excluded,
   concluded or weighed, as `stance.py` tells.

What the rules do not see: which of two findings has which of two values, units, signs and the
opposites that the lexicon does not know.
"""

from collections.abc import Sequence

from mcr_jax.stitch import lexicon, text
from mcr_jax.stitch.names import Name, Vocabulary
from mcr_jax.stitch.stance import ANY, CONCLUDED, EXCLUDED, agree, keeps_verdict, stances
from mcr_jax.stitch.text import Sentence, stem

SHARE, WIDE_SHARE = 0.6, 0.75

_GLUE = frozenset(map(stem, lexicon.GLUE))
_OPPOSITES = tuple(
    (stem(one[0]), stem(other[0]))
    for pair in lexicon.OPPOSITES
    for one, other in (pair, pair[::-1])
)
Run = tuple[int, int]  # its first sentence, and the one behind its last


class Statement:
    """A statement as it is looked for."""

    def __init__(self, statement: str, vocabulary: Vocabulary):
        self.sentences = text.sentences(statement)
        run = _Words(self.sentences)
        self.names = vocabulary.find([w for s in self.sentences for w in s.words])
        self._numbers = run.numbers
        self._named = frozenset().union(*self.names)  # these have their stances
        self._plain = run.plain - _GLUE - self._named
        self._denied = run.denied - _GLUE - self._named
        self._all = run.plain | run.denied
        self._content = self._plain | self._denied | self._named or self._all
        self._denials = [words for d in run.denials if (words := d - _GLUE)]
        self.stances = stances((*self.names, ANY), self.sentences)
        self._judged = [name for name in self.names if self.stances[name]]

    def told_in(self, sentence: Sentence) -> float:
        """The share of its words that a sentence has, whatever it says with them."""
        return len(self._content & (sentence.stems | sentence.denied)) / max(1, len(self._content))

    def best(self, said: Sequence[Sentence], closed: frozenset[int]) -> Run | None:
        """The shortest run of sentences, none of them `closed`, that makes the statement best."""
        everything = frozenset().union(*(s.stems | s.denied for s in said))
        if not all(everything.issuperset(name) for name in self.names):
            return None
        found, best = None, 0.0
        for size in range(1, len(self.sentences) + 2):
            for start in range(len(said) - size + 1):
                if not closed.isdisjoint(range(start, start + size)):
                    continue
                share = self._share(said[start : start + size])
                if share > best:
                    found, best = (start, start + size), share
        return found

    def _share(self, said: Sequence[Sentence]) -> float:
        """The share of its words of content in `said`; 0 where that does not make it."""
        run = _Words(said)
        words = run.plain | run.denied
        there = self._plain & run.plain | self._denied & run.denied | self._named & words
        share = len(there) / len(self._content) if self._content else 1.0
        wanted = SHARE if len(said) <= len(self.sentences) else WIDE_SHARE
        if share < wanted or not self._numbers <= run.numbers:
            return 0.0
        if not all(words.issuperset(name) for name in self._judged or self.names):
            return 0.0
        return share if self._same_denials(run) and self._same_stances(said) else 0.0

    def _same_denials(self, run: "_Words") -> bool:
        """Rule 3."""
        words = run.plain | run.denied
        if (self._denied - self._plain) & run.free:
            return False
        if (self._plain - self._denied) & (run.denied - run.plain):
            return False
        if any(
            words & lost and all(lost.isdisjoint(d) for d in run.denials) for lost in self._denials
        ):
            return False
        return not any(one in self._all - words and other in words for one, other in _OPPOSITES)

    def _same_stances(self, said: Sequence[Sentence]) -> bool:
        """Rule 4."""
        told = stances((*self._judged, ANY), said)
        if not self._judged:
            return agree(self.stances[ANY], told[ANY])
        return keeps_verdict(self.stances[ANY], told[ANY]) and all(
            agree(self.stances[name], told[name]) for name in self._judged
        )

    def concludes(self, name: Name) -> bool:
        """Whether it concludes `name`, and does not exclude it."""
        return stances([name], self.sentences)[name] & {CONCLUDED, EXCLUDED} == {CONCLUDED}

    def has(self, name: Name) -> bool:
        """Whether it names `name`."""
        return any(holds(sentence, name) for sentence in self.sentences)


def runs(asked: Sequence[Statement], said: Sequence[Sentence]) -> list[Run | None]:
    """Where `said` makes each statement; None for one that it does not make."""
    shares = [[statement.told_in(sentence) for sentence in said] for statement in asked]
    made = []
    for statement, own in zip(asked, shares, strict=True):
        closed = frozenset(
            place
            for place, share in enumerate(own)
            if share < SHARE <= max(others[place] for others in shares)
        )
        made.append(statement.best(said, closed))
    return made


class _Words:
    """The words of some sentences taken together."""

    def __init__(self, said: Sequence[Sentence]):
        self.plain = frozenset().union(*(s.stems for s in said))
        self.denied = frozenset().union(*(s.denied for s in said))
        self.free = frozenset().union(*(s.free for s in said))
        self.denials = [denial for s in said for denial in s.denials]
        self.numbers = frozenset().union(*(s.numbers for s in said))


def holds(sentence: Sentence, name: Name) -> bool:
    """Whether a sentence has all words of a name."""
    return (sentence.stems | sentence.denied).issuperset(name)
