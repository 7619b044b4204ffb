"""Text as the audit of traces compares it: sentences of words, each with whether it is denied.

Words are compared by their stems, so that "elevated" and "elevation" agree. A word in reach of a
denial ("no fever", "fever was absent", "fever was not seen") is another word than the same without;
one further along, as in a list, where grammar alone could tell, counts as both. English, by rules:
a denial that is put otherwise is not seen.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from mcr_jax.stitch import lexicon

_PLAIN = str.maketrans(
    dict.fromkeys("‘’‚‛′`´", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒−", "-")
    | dict.fromkeys("–—―", ";")
    | {"…": ";"}
)
_UNSEEN = re.compile("[\u0300-\u036f\u00ad\u200b-\u200f\u2060\ufeff]")
_CITED = re.compile(r"\[\d[\d,;\s-]*\]")  # [7, 11]: a reference, no finding
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|[,;:()]")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNTED = {word: str(number) for number, word in enumerate(_NUMBERS, start=2)}
_ENDINGS = ("ing", "ed", "ion", "ly", "al", "e", "y")
_SURE, _REACH = 4, 8  # words that a denial reaches for certain, and at most
_ENDS_REACH = lexicon.TURNS | lexicon.AUXILIARIES


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
      clauses: its words, folded, from one mark or turn to the next; numbers among them.
      stems: of its words that are not denied, or may not be.
      denied: of those that are, or may be.
      numbers: as written, without commas between thousands.
    """

    clauses: tuple[tuple[str, ...], ...]
    stems: frozenset[str]
    denied: frozenset[str]
    numbers: frozenset[str]

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """All words in order."""
        return tuple(word for clause in self.clauses for word in clause)


def fold(text: str) -> str:
    """`text` in one form, its lines kept: as `quotes.normal` does, but tens of times as fast.

    It does not tell where a character came from, which the audit has no use for.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return _THOUSANDS.sub("", _CITED.sub(" ", _UNSEEN.sub("", plain))).casefold()


def sentences(text: str) -> list[Sentence]:
    """The sentences of `text`; a line's end also ends one."""
    pieces = (_TOKEN.findall(piece) for piece in _SENTENCE.split(fold(text)))
    return [_sentence(tokens) for tokens in pieces if any(t[0].isalnum() for t in tokens)]


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, folded."""
    return tuple(token for token in _TOKEN.findall(fold(text)) if token[0].isalnum())


@functools.lru_cache(100_000)
def stem(word: str) -> str:
    """`word` without its plural and one common ending; one word for those that mean the same.

    Numbers up to ten are in digits.
    """
    if word in _COUNTED:
        return _COUNTED[word]
    word = lexicon.SAME.get(word, word)
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _sentence(tokens: Sequence[str]) -> Sentence:
    sure = _denied(tokens)
    plain, negative, numbers = set(), set(), set()
    for place, token in enumerate(tokens):
        if not token[0].isalnum():
            continue
        made = stem(token)
        if made[0].isdigit():
            numbers.add(made)
        if place in sure:
            negative.add(made)
        if not sure.get(place, False):
            plain.add(made)
    return Sentence(
        tuple(_clauses(tokens)), frozenset(plain), frozenset(negative), frozenset(numbers)
    )


def _clauses(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    clause: list[str] = []
    for token in tokens:
        if not token[0].isalnum() or token in lexicon.TURNS:
            if clause:
                yield tuple(clause)
            clause = [token] if token[0].isalnum() else []
        else:
            clause.append(token)
    if clause:
        yield tuple(clause)


def _denied(tokens: Sequence[str]) -> dict[int, bool]:
    """The places of the tokens that a denial reaches, and whether it does for certain."""
    reached: dict[int, bool] = {}
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        refuses = token in lexicon.DENIES or token.endswith("n't")
        refuses |= token == "free" and following == "of"
        if token in lexicon.DENIES_BEFORE or (refuses and following in lexicon.ASSERTS):
            found = _reach(tokens, range(place - 1, -1, -1), lexicon.TURNS)
        elif refuses and following not in lexicon.RELATES:
            found = _reach(tokens, range(place + 1, len(tokens)), _ENDS_REACH)
        else:
            continue
        for there, sure in found:
            reached[there] = sure or reached.get(there, False)
    return reached


def _reach(
    tokens: Sequence[str], places: range, turns: frozenset[str]
) -> Iterator[tuple[int, bool]]:
    """The places that a denial reaches, in turn; for certain up to a comma, an "and" or an "or"."""
    words, sure = 0, True
    for place in places:
        token = tokens[place]
        if token in ";:()" or token in turns or words == _REACH:
            return
        sure = sure and words < _SURE and token not in (",", "and", "or")
        words += token[0].isalnum()
        yield place, sure
