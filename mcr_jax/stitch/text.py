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

from mcr_jax import quotes
from mcr_jax.stitch import lexicon

_PLAIN = str.maketrans(quotes.PLAIN | dict.fromkeys("–—―…", ";"))  # these break a sentence up
_UNSEEN = re.compile("[\u0300-\u036f\u00ad\u200b-\u200f\u2060\ufeff]")
_KNOWN = 1 << 14  # characters whose decomposed form is remembered
_BROKEN_OFF = re.compile(r"…(?=[\"”’')\]]+\s+[A-Z“\"])")  # where a quotation ends: a sentence's end
_CITED = re.compile(r"\[\d[\d,;\s-]*\]")  # [7, 11]: a reference, no finding
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|[,;:()]")
_NUMBERS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_COUNTED = {word: str(number) for number, word in enumerate(_NUMBERS, start=2)}
_ENDINGS = ("ing", "ed", "ion", "ly", "al", "e", "y")
_ZEROS = re.compile(r"\.0+$|(?<=\.\d)0+$|(?<=\.\d\d)0+$")  # of 38.0
_BRITISH = (
    (re.compile(r"(?<=[^\W\d_]{3})our(?=$|s$|ed$|ing$|al$)"), "or"),
    (re.compile(r"[ao]e(?=[^\W\d_]{3})"), "e"),
)
_SAYS = {"afebrile": ("no", "fever"), "febrile": ("fever",)}
_SURE, _REACH = 4, 16  # words that a denial reaches for certain, and at most
_JOINS = frozenset(("that", "to", "be", "been"))  # before a verb that a denial takes in
_BETWEEN = lexicon.words("also then later thus was were is are finally")
_VERDICTS = lexicon.EXCLUDES | lexicon.AFFIRMS | lexicon.WEIGHS


@dataclasses.dataclass(frozen=True)
class Clause:
    """A part of a sentence, from one mark or turn to the next.

    Attributes:
      words: folded; numbers among them.
      denied: stems of those that are denied for certain.
      perhaps: stems of those that may be.
    """

    words: tuple[str, ...]
    denied: frozenset[str]
    perhaps: frozenset[str]

    @functools.cached_property
    def stems(self) -> frozenset[str]:
        """Of all its words."""
        return frozenset(map(stem, self.words))


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
      clauses: in order.
      stems: of its words that are not denied, or may not be.
      denied: of those that are, or may be.
      free: of those that stand somewhere out of reach of any denial.
      denials: what each denial reaches, and a few words behind it.
      numbers: in digits, without commas between thousands and without idle zeros.
    """

    clauses: tuple[Clause, ...]
    stems: frozenset[str]
    denied: frozenset[str]
    free: frozenset[str]
    denials: tuple[frozenset[str], ...]
    numbers: frozenset[str]

    @functools.cached_property
    def digits(self) -> frozenset[str]:
        """Those of its numbers that are written in digits."""
        return frozenset(stem(word) for word in self.words if word[0].isdigit())

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """All words in order."""
        return tuple(word for clause in self.clauses for word in clause.words)


def fold(text: str) -> str:
    """`text` in one form, its lines kept: much as `quotes.normal` does, but tens of times as fast.

    It does not tell where a character came from, which the audit has no use for. Long dashes and
    ellipses become marks that part clauses.
    """
    plain = _BROKEN_OFF.sub(".", text).translate(_DECOMPOSED)
    return _THOUSANDS.sub("", _CITED.sub(" ", plain)).casefold()


class _Decomposed(dict):
    """Code point to its plain form (NFKD, no accents), as `str.translate` asks for it.

    One by one: of a whole text `unicodedata.normalize` also sorts the accents, in quadratic time.
    """

    def __missing__(self, code: int) -> str:
        parts = unicodedata.normalize("NFKD", chr(code).translate(_PLAIN))
        plain = _UNSEEN.sub("", parts)
        if len(self) < _KNOWN:  # a hostile text may hold every character there is
            self[code] = plain
        return plain


_DECOMPOSED = _Decomposed()


def sentences(text: str) -> list[Sentence]:
    """The sentences of `text`; a line's end also ends one."""
    pieces = (_tokens(piece) for piece in _SENTENCE.split(fold(text)))
    return [_sentence(tokens) for tokens in pieces if any(t[0].isalnum() for t in tokens)]


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, folded."""
    return tuple(token for token in _TOKEN.findall(fold(text)) if token[0].isalnum())


@functools.lru_cache(100_000)
def stem(word: str) -> str:
    """`word` without its plural and one common ending; one word for those that mean the same.

    Numbers up to twenty are in digits, and spelling is American.
    """
    if word in _COUNTED:
        return _COUNTED[word]
    if word[0].isdigit():
        return _ZEROS.sub("", word)
    for british, american in _BRITISH:
        word = british.sub(american, word)
    word = lexicon.SAME.get(word, word)
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            break
    return word[:-1] if word.endswith("ck") and len(word) > 4 else word  # mimicked, mimic


def _tokens(piece: str) -> list[str]:
    return [said for token in _TOKEN.findall(piece) for said in _SAYS.get(token, (token,))]


def _sentence(tokens: Sequence[str]) -> Sentence:
    denials = list(_denials(tokens))
    sure: dict[int, bool] = {}
    for denial in denials:
        for place, certain in denial.reached:
            sure[place] = certain or sure.get(place, False)
    plain, negative, free, numbers = set(), set(), set(), set()
    for place, token in enumerate(tokens):
        if not token[0].isalnum():
            continue
        made = stem(token)
        if made[0].isdigit():
            numbers.add(made)
        (negative if place in sure else free).add(made)
        if not sure.get(place, False):
            plain.add(made)
    clauses = tuple(_clause(tokens, places, sure) for places in _clauses(tokens))
    return Sentence(
        clauses=clauses,
        stems=frozenset(plain),
        denied=frozenset(negative),
        free=frozenset(free),
        denials=tuple(denial.stems(tokens) for denial in denials),
        numbers=frozenset(numbers),
    )


def _clause(tokens: Sequence[str], places: Sequence[int], sure: dict[int, bool]) -> Clause:
    reached = {certain: set() for certain in (True, False)}
    for place in places:
        if place in sure:
            reached[sure[place]].add(stem(tokens[place]))
    words = tuple(tokens[place] for place in places)
    return Clause(words, frozenset(reached[True]), frozenset(reached[False]))


def _clauses(tokens: Sequence[str]) -> Iterator[list[int]]:
    """The places of the words of each clause."""
    clause: list[int] = []
    for place, token in enumerate(tokens):
        mark = not token[0].isalnum()
        if mark or token in lexicon.TURNS or _turns_to_verdict(tokens, place):
            if clause:
                yield clause
            clause = []
        if not mark:
            clause.append(place)
    if clause:
        yield clause


def _turns_to_verdict(tokens: Sequence[str], place: int) -> bool:
    """Whether an "and" stands here that joins on what else is said: "considered and excluded"."""
    if tokens[place] not in ("and", "or"):
        return False
    following = tokens[place + 1 : place + 4]
    after = next((t for t in following if t not in _BETWEEN and not t.endswith("ly")), "")
    return after in _VERDICTS


@dataclasses.dataclass(frozen=True)
class _Denial:
    """A word that denies, at `place`, and the places that it reaches, with how certainly."""

    place: int
    reached: tuple[tuple[int, bool], ...]

    def stems(self, tokens: Sequence[str]) -> frozenset[str]:
        """Of the words that it reaches, and of those just behind it."""
        behind = range(self.place + 1, min(self.place + 1 + _SURE, len(tokens)))
        places = {place for place, _ in self.reached}.union(behind)
        return frozenset(stem(tokens[place]) for place in places if tokens[place][0].isalnum())


def _denials(tokens: Sequence[str]) -> Iterator[_Denial]:
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        refuses = token in lexicon.DENIES or token.endswith("n't")
        refuses |= token == "free" and following in ("of", "from")
        if token in lexicon.DENIES_BEFORE or (refuses and following in lexicon.ASSERTS):
            found = _reach(tokens, range(place - 1, -1, -1), lexicon.TURNS)
        elif refuses and following not in lexicon.RELATES:
            found = _reach(tokens, range(place + 1, len(tokens)), lexicon.TURNS, ends=True)
        else:
            continue
        yield _Denial(place, tuple(found))


def _reach(
    tokens: Sequence[str], places: range, turns: frozenset[str], ends: bool = False
) -> Iterator[tuple[int, bool]]:
    """The places that a denial reaches, in turn; for certain up to a comma, an "and" or an "or".

    Where a verb `ends` it, one that belongs to the denial does not: "did not have fever".
    """
    words, sure = 0, True
    for place in places:
        token = tokens[place]
        if token in ";:()" or token in turns or words == _REACH:
            return
        if ends and token in lexicon.AUXILIARIES:
            if words:
                return
            continue
        if ends and words and token in lexicon.CONCLUDES and tokens[place - 1] not in _JOINS:
            return
        sure = sure and words < _SURE and token not in (",", "and", "or")
        words += token[0].isalnum()
        yield place, sure
