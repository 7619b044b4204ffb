"""Normalized words and numbers of texts, for the audit of traces."""

import functools
import re

from mcr_jax import quotes

_RAISED = re.compile("(?<=[0-9])(?=[⁰¹²³⁴-⁹])")  # keeps 10⁹ from becoming 109
_CITED = re.compile(r"\[\d[\d,;\s-]*\]|\b(?:fig(?:ure)?s?|tables?)\.? \d+")  # not a finding
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|\n+")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")
_ZEROS = re.compile(r"\.0+$|(?<=\.\d)0+$|(?<=\.\d\d)0+$")  # such as in 38.0
_BRITISH = (
    (re.compile(r"(?<=[^\W\d_]{3})our(?=$|s$|ed$|ing$|al$)"), "or"),
    (re.compile(r"[ao]e(?=[^\W\d_]{3})"), "e"),
)
_WORDS_OF_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty",
    "_ first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
    "_ once twice thrice",
    "_ single double triple",
    "_ i ii iii iv v vi vii viii ix x xi xii",
    "_ _ twofold threefold fourfold fivefold",
)
_IN_WORDS = {
    word: str(number) for line in _WORDS_OF_NUMBERS for number, word in enumerate(line.split())
}


def sentences(text: str) -> list[tuple[str, ...]]:
    """Returns the stems of each sentence of `text`; the end of a line also ends a sentence."""
    return [words for piece in _SENTENCE.split(text) if (words := stems(piece))]


def stems(text: str) -> tuple[str, ...]:
    """Returns the words of `text`, folded, in American spelling, without possessive or plural."""
    return tuple(map(_stem, _tokens(text)))


def numbers(text: str, *, in_words: bool = False) -> set[str]:
    """Returns the numbers in digits, without thousands separators and trailing zeros.

    Args:
      text: numbers of citations and figures in it are ignored.
      in_words: also returns numbers written as words or Roman numerals.
    """
    found = set()
    for token in _tokens(text):
        if token[0].isdigit():
            found.add(_ZEROS.sub("", token.replace(",", ".")))
        elif in_words and token in _IN_WORDS:
            found.add(_IN_WORDS[token])
    return found


def _tokens(text: str) -> list[str]:
    plain = _CITED.sub(" ", quotes.normal(_RAISED.sub("^", text)))
    return _TOKEN.findall(_THOUSANDS.sub("", plain))


@functools.lru_cache(100_000)
def _stem(word: str) -> str:
    if word[0].isdigit():
        return _ZEROS.sub("", word)
    word = word.removesuffix("'s")
    for british, american in _BRITISH:
        word = british.sub(american, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
