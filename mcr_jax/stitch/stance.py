"""What sentences say of a disease: excluded, concluded, or only weighed.

Clause by clause. What a clause says without a name ("…, which ruled it out") it says of the disease
named last, and perhaps of others where more were named. "Excluded" is also what is denied ("no
pneumothorax"). Known limits: of two diseases in one clause both get its verdict, and questions and
comparisons ("more likely than") are read as they stand.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mcr_jax.stitch import lexicon
from mcr_jax.stitch.names import Name
from mcr_jax.stitch.text import Clause, Sentence, stem

EXCLUDED, CONCLUDED, WEIGHED = "excluded", "concluded", "weighed"
# What may have been meant: it answers for the same in a statement, and is not held against a trace.
PERHAPS = {EXCLUDED: "perhaps excluded", CONCLUDED: "perhaps concluded", WEIGHED: WEIGHED}
_DENIED, _MENTIONED = "denied", "mentioned"  # until all is read

ANY: Name = ()  # stands for whatever a clause is about
_NOT = frozenset(("not", "never", "cannot"))
_OTHERS = lexicon.words("other others alternative alternatives remaining another")
_LESS = lexicon.words("likely probable plausible convincing favored favoured")
_MOST = lexicon.words("likely probable plausible")
_PRONOUNS = lexicon.words("it this that these they them which latter")
_LIST = 2  # words beside the names in a clause that is but a part of a list of names


def stances(names: Iterable[Name], said: Sequence[Sentence]) -> Mapping[Name, frozenset[str]]:
    """All that `said` says of each of `names`; a name of which it says nothing has none."""
    found: dict[Name, set[str]] = {name: set() for name in names}
    watched = _Watched(found)
    last = _InMind()
    for sentence in said:
        last = _read(sentence, watched, last, found)
    return {name: _settled(those) for name, those in found.items()}


def _settled(those: set[str]) -> frozenset[str]:
    """What was read of a name: a denial excludes it, unless it also stands without one."""
    denied = {PERHAPS[EXCLUDED] if _MENTIONED in those else EXCLUDED} if _DENIED in those else ()
    return frozenset(those - {_DENIED, _MENTIONED}).union(denied)


class _Watched:
    """Names that are looked for, by the first of their stems."""

    def __init__(self, names: Iterable[Name]):
        self._by_first: dict[str, list[tuple[int, Name]]] = {}
        for place, name in enumerate(names):
            if name:
                self._by_first.setdefault(name[0], []).append((place, name))

    def within(self, stems: frozenset[str]) -> list[Name]:
        """Those whose words are all among `stems`, in their order."""
        first = (pair for stem in stems for pair in self._by_first.get(stem, ()))
        return [name for _, name in sorted(pair for pair in first if stems.issuperset(pair[1]))]


class _InMind:
    """Names that a clause without one may be about."""

    def __init__(self) -> None:
        self.clauses: set[tuple[Name, ...]] = set()  # the different sets of names
        self.last: tuple[Name, ...] = ()
        self._names: list[Name] = []
        self._given: dict[str, int] = {}  # how many of the names have each stance already

    def put(self, names: tuple[Name, ...]) -> None:
        """Adds the names of a clause."""
        self.last = names
        if names not in self.clauses:
            self.clauses.add(names)
            self._names += names

    def tell(self, found: dict[Name, set[str]], told: str) -> None:
        """Adds to `found` that `told` is said of all the names."""
        _add(found, self._names[self._given.get(told, 0) :], told)
        self._given[told] = len(self._names)


def _read(
    sentence: Sentence, watched: _Watched, last: _InMind, found: dict[Name, set[str]]
) -> _InMind:
    """Adds to `found` what a sentence says; returns the names that it leaves in mind."""
    here = _InMind()  # the names of its clauses so far
    listed: list[Name] = []  # those of the clauses just before that are but a list
    before = ""  # what the clause before says, for those that go on with its list
    for place, clause in enumerate(sentence.clauses):
        told, stems = verdict(clause), clause.stems
        if told and ANY in found:
            found[ANY].add(told)
        if not _OTHERS.isdisjoint(clause.words):
            told = ""  # "when other causes were excluded"
        named = watched.within(stems)
        firm = tuple(name for name in named if not clause.denied.issuperset(name))
        _read_denials(clause, named, found)
        if firm:
            here.put(firm)
            is_list = len(clause.words) - sum(map(len, firm)) <= _LIST
            if told:
                _add(found, firm, told)
                _add(found, listed, PERHAPS.get(told, told))
            elif is_list and before:
                _add(found, firm, PERHAPS.get(before, before))
            else:
                _add(found, firm, _MENTIONED)
            if told or not is_list:
                listed = []
            else:
                listed += firm
            before = told or (before if is_list else "")
            continue
        known = len(here.clauses)
        if told and _refers(clause, bool(known)):
            # Across sentences a name that nothing knows may have come between, unless "It was …".
            sure = known == 1 if known else not place and clause.words[0] in _PRONOUNS
            (here if known else last).tell(found, told if sure else PERHAPS.get(told, told))
        listed, before = [], ""
    if not here.clauses:
        return last
    left = _InMind()
    left.put(here.last)
    return left


def _read_denials(clause: Clause, named: Sequence[Name], found: dict[Name, set[str]]) -> None:
    for name in named:
        if clause.denied.issuperset(name):
            _add(found, (name, ANY) if ANY in found else (name,), _DENIED)
        elif clause.perhaps.issuperset(name):
            _add(found, (name,), PERHAPS[EXCLUDED])


def _add(found: dict[Name, set[str]], names: Iterable[Name], told: str) -> None:
    for name in names:
        found[name].add(told)


def _refers(clause: Clause, within: bool) -> bool:
    """Whether a clause that names nothing speaks of what was named before.

    Args:
      within: what was named stands in the same sentence.
    """
    if not _PRONOUNS.isdisjoint(clause.words):
        return True
    verdicts = lexicon.EXCLUDES | lexicon.AFFIRMS | lexicon.WEIGHS | {"not", "less", "most"}
    first = next((n for n, word in enumerate(clause.words) if word in verdicts), None)
    return within and first is not None and lexicon.GLUE.issuperset(clause.words[:first])


def agree(here: frozenset[str], there: frozenset[str]) -> bool:
    """Whether a trace that takes the stances `there` does not distort a statement's `here`."""
    for taken, opposite in ((EXCLUDED, CONCLUDED), (CONCLUDED, EXCLUDED)):
        if taken in here and there.isdisjoint((taken, PERHAPS[taken])):
            return opposite in here and not there.isdisjoint((opposite, PERHAPS[opposite]))
    if CONCLUDED in there and here.isdisjoint((CONCLUDED, PERHAPS[CONCLUDED])):
        return False
    # A name that stands alone, its evidence behind it, may be said to be excluded by that.
    alone = here.isdisjoint((CONCLUDED, WEIGHED))
    return EXCLUDED not in there or alone or not here.isdisjoint((EXCLUDED, PERHAPS[EXCLUDED]))


def keeps_verdict(here: frozenset[str], there: frozenset[str]) -> bool:
    """As `agree`, of `ANY` where diseases are named: it only asks for a like verdict."""
    for taken in (EXCLUDED, CONCLUDED):
        if taken in here:
            return not there.isdisjoint((taken, PERHAPS[taken]))
    return True


@functools.lru_cache(16_384)
def verdict(clause: Clause) -> str:
    """What a clause says: of all, the gravest; "" for nothing."""
    found = frozenset(_verdicts(clause))
    order = (EXCLUDED, CONCLUDED, WEIGHED, PERHAPS[CONCLUDED])
    return next((told for told in order if told in found), "")


def _verdicts(clause: Clause) -> Iterator[str]:
    words = clause.words
    # "The differential diagnosis includes gout" does not conclude.
    provisional = not (lexicon.WEIGHS | lexicon.PROVISIONAL).isdisjoint(words)
    for place, word in enumerate(words):
        before, after = words[max(0, place - 2) : place], words[place + 1 : place + 3]
        refused = any(w in _NOT or w.endswith("n't") for w in before)
        made = stem(word)
        if word in lexicon.EXCLUDES or (word == "less" and not _LESS.isdisjoint(after[:1])):
            yield WEIGHED if refused else EXCLUDED
        elif word in lexicon.AFFIRMS or (word in _MOST and before[-1:] == ("most",)):
            if refused or made in clause.denied:
                yield EXCLUDED
            elif made not in clause.perhaps and not (provisional and word in lexicon.AFFIRMS_ALONE):
                yield CONCLUDED
        elif (word in _NOT or word.endswith("n't")) and not lexicon.FITS.isdisjoint(after):
            yield EXCLUDED
        elif word in lexicon.WEIGHS:
            yield EXCLUDED if refused else WEIGHED
        elif word in lexicon.SUPPORTS and not refused and made not in clause.denied:
            yield PERHAPS[CONCLUDED]


def announces(sentence: Sentence) -> bool:
    """Whether a sentence says what the diagnosis is."""
    return any(
        verdict(clause) == CONCLUDED and not lexicon.DIAGNOSES.isdisjoint(clause.words)
        for clause in sentence.clauses
    )
