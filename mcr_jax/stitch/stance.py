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

ANY: Name = ()  # stands for whatever a clause is about
_NOT = frozenset(("not", "never", "cannot"))
_OTHERS = frozenset("other others alternative alternatives remaining another".split())
_LESS = frozenset("likely probable plausible convincing favored favoured".split())
_MOST = frozenset("likely probable plausible".split())
_PRONOUNS = frozenset("it this that these they them which latter".split())
_LIST = 2  # words beside the names in a clause that is but a part of a list of names


def stances(names: Iterable[Name], said: Sequence[Sentence]) -> Mapping[Name, frozenset[str]]:
    """All that `said` says of each of `names`; a name of which it says nothing has none."""
    found: dict[Name, set[str]] = {name: set() for name in names}
    watched = tuple(name for name in found if name)
    last: tuple[Name, ...] = ()
    for sentence in said:
        last = _read(sentence, watched, last, found)
    return {name: frozenset(those) for name, those in found.items()}


def _read(
    sentence: Sentence, watched: Sequence[Name], last: tuple[Name, ...], found: dict[Name, set[str]]
) -> tuple[Name, ...]:
    """Adds to `found` what a sentence says; returns the names that it leaves in mind."""
    here: list[tuple[Name, ...]] = []  # the names of its clauses so far
    listed: tuple[Name, ...] = ()  # those of the clauses just before that are but a list
    before = ""
    for clause in sentence.clauses:
        told, stems = verdict(clause), clause.stems
        named = [name for name in watched if stems.issuperset(name)]
        firm = tuple(name for name in named if not clause.denied.issuperset(name))
        for name in named:
            if clause.denied.issuperset(name):
                found[name].add(EXCLUDED)
                if ANY in found:
                    found[ANY].add(EXCLUDED)
            elif clause.perhaps.issuperset(name):
                found[name].add(PERHAPS[EXCLUDED])
        if told and ANY in found:
            found[ANY].add(told)
        is_list = bool(firm) and len(clause.words) - sum(map(len, firm)) <= _LIST
        if firm:
            for name in firm if told else ():
                found[name].add(told)
            for name in listed if told else ():
                found[name].add(PERHAPS.get(told, told))
            for name in firm if before and is_list and not told else ():
                found[name].add(PERHAPS.get(before, before))
            listed = (*listed, *firm) if is_list and not told else ()
            here.append(firm)
            before = told or (before if is_list else "")
        elif told and _refers(clause, bool(here)):
            one = len(set(here)) <= 1
            for name in (here[0] if one else set().union(*here)) if here else last:
                found[name].add(told if one else PERHAPS.get(told, told))
    return here[-1] if here else last


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
    of_others = not _OTHERS.isdisjoint(words)
    for place, word in enumerate(words):
        before, after = words[max(0, place - 2) : place], words[place + 1 : place + 3]
        refused = any(w in _NOT or w.endswith("n't") for w in before)
        made = stem(word)
        if word in lexicon.EXCLUDES or (word == "less" and not _LESS.isdisjoint(after[:1])):
            if not of_others:
                yield WEIGHED if refused else EXCLUDED
        elif word in lexicon.AFFIRMS or (word in _MOST and before[-1:] == ("most",)):
            if refused or made in clause.denied:
                yield EXCLUDED
            elif made not in clause.perhaps and not (of_others or _provisional(word, words)):
                yield CONCLUDED
        elif (word in _NOT or word.endswith("n't")) and not lexicon.FITS.isdisjoint(after):
            yield EXCLUDED
        elif word in lexicon.WEIGHS:
            yield EXCLUDED if refused else WEIGHED
        elif word in lexicon.SUPPORTS and not refused and made not in clause.denied:
            yield PERHAPS[CONCLUDED]


def _provisional(word: str, words: Sequence[str]) -> bool:
    """Whether a clause that has `word`, which concludes, does not conclude: "a diagnosis to weigh"."""
    if word not in lexicon.AFFIRMS_ALONE:
        return False
    return not (lexicon.WEIGHS | lexicon.PROVISIONAL).isdisjoint(words)


def announces(sentence: Sentence) -> bool:
    """Whether a sentence says what the diagnosis is."""
    return any(
        verdict(clause) == CONCLUDED and not lexicon.DIAGNOSES.isdisjoint(clause.words)
        for clause in sentence.clauses
    )
