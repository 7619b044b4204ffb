"""Words and numbers as the audit of traces compares them."""

import functools
import re

from mcr_jax import quotes

_RAISED = re.compile("(?<=[0-9])(?=[⁰¹²³⁴-⁹])")  # 10⁹ is no 109
_CITED = re.compile(r"\[\d[\d,;\s-]*\]|\b(?:fig(?:ure)?s?|tables?)\.? \d+")  # not a finding
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|\n+")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")
_ZEROS = re.compile(r"\.0+$|(?<=\.\d)0+$|(?<=\.\d\d)0+$")  # of 38.0
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
    """The stems of each sentence of `text`; a line's end also ends one."""
    return [made for piece in _SENTENCE.split(text) if (made := stems(piece))]


def stems(text: str) -> tuple[str, ...]:
    """The words of `text`: folded, spelled the American way, without possessive and plural."""
    return tuple(map(_stem, _tokens(text)))


def numbers(text: str, *, in_words: bool = False) -> set[str]:
    """The numbers in digits, without commas between thousands and zeros at the end of decimals.

    Args:
      text: in which those of citations and figures do not count.
      in_words: whether words and Roman numerals count, too.
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
