"""What sentences say of a disease: excluded, concluded, or only weighed.

Clause by clause. A clause that gives a verdict and names no disease ("…, which ruled it out") gives
it of the disease named last. "Excluded" is also what is denied ("no pneumothorax"). Known limits:
of two diseases in one clause both get its verdict, and irony, questions and comparisons ("more
likely than") are read as they stand.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence

from mcr_jax.stitch import lexicon
from mcr_jax.stitch.names import Name
from mcr_jax.stitch.text import Clause, Sentence, stem

EXCLUDED, CONCLUDED, WEIGHED = "excluded", "concluded", "weighed"
PERHAPS = "perhaps"  # excluded if a denial reaches as far as this

ANY: Name = ()  # stands for whatever a clause is about
_NOT = frozenset(("not", "never", "cannot"))
_OTHERS = frozenset("other others alternative alternatives remaining rest another".split())
_LESS = frozenset("likely probable plausible convincing favored favoured".split())


def stances(names: Iterable[Name], said: Sequence[Sentence]) -> Mapping[Name, frozenset[str]]:
    """All that `said` says of each of `names`; a name that it has no verdict on gets none."""
    found: dict[Name, set[str]] = {name: set() for name in names}
    last: list[Name] = []
    for clause in (clause for sentence in said for clause in sentence.clauses):
        told, stems = verdict(clause), clause.stems
        named = [name for name in found if stems.issuperset(name)]
        firm = [name for name in named if not name or not clause.denied.issuperset(name)]
        carried = last if told in (EXCLUDED, CONCLUDED) and not any(firm) else ()
        for name in (*firm, *carried):
            if told:
                found[name].add(told)
        for name in filter(None, named):
            if clause.denied.issuperset(name):
                found[name].add(EXCLUDED)
            elif clause.perhaps.issuperset(name):
                found[name].add(PERHAPS)
        last = [name for name in firm if name] or last
    return {name: frozenset(those) for name, those in found.items()}


def agree(here: frozenset[str], there: frozenset[str]) -> bool:
    """Whether a trace that takes the stances `there` does not distort a statement's `here`."""
    excluded, concluded = EXCLUDED in here, CONCLUDED in here
    if excluded and concluded:
        return bool(there & here - {WEIGHED})
    if excluded:
        return CONCLUDED not in there and not there.isdisjoint((EXCLUDED, PERHAPS))
    if concluded:
        return CONCLUDED in there and EXCLUDED not in there
    if CONCLUDED in there:
        return False
    # A name that stands alone, its evidence behind it, may be said to be excluded by that.
    return WEIGHED not in here or PERHAPS in here or EXCLUDED not in there


@functools.lru_cache(16_384)
def verdict(clause: Clause) -> str:
    """EXCLUDED, CONCLUDED, WEIGHED or "": what a clause says, the first of these that it says."""
    words, found = clause.words, set()
    about_others = not _OTHERS.isdisjoint(words)
    for place, word in enumerate(words):
        before, after = words[max(0, place - 2) : place], words[place + 1 : place + 3]
        refused = any(w in _NOT or w.endswith("n't") for w in before)
        if word in lexicon.EXCLUDES or (word == "less" and not _LESS.isdisjoint(after[:1])):
            if not about_others:
                found.add(WEIGHED if refused else EXCLUDED)
        elif word in lexicon.AFFIRMS or (
            word in ("likely", "probable", "plausible") and "most" in before[-1:]
        ):
            made = stem(word)
            if refused or made in clause.denied:
                found.add(EXCLUDED)
            elif made not in clause.perhaps and not _provisional(word, words):
                found.add(CONCLUDED)
        elif word in lexicon.WEIGHS:
            found.add(EXCLUDED if refused else WEIGHED)
        elif (word in _NOT or word.endswith("n't")) and not lexicon.FITS.isdisjoint(after):
            found.add(EXCLUDED)
    return next((told for told in (EXCLUDED, CONCLUDED, WEIGHED) if told in found), "")


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
