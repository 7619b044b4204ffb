"""Words, names and sentences as the judges compare them."""

import re
from collections.abc import Iterator

from mcr_jax.quotes import normal

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_ARTICLES = frozenset(("a", "an", "the"))
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]”’»]*(?=\s)|(?=\n)")


def words(text: str) -> list[str]:
    """The words of `text` in normal form, without possessive and plural endings."""
    found = _WORD.findall(re.sub(r"(?<=\w)'s\b", "", normal(text)))
    return [_singular(word) for word in found]


def name(text: str) -> tuple[str, ...]:
    """A disease's name as its words, articles left out: equal for two writings of one name."""
    return tuple(word for word in words(text) if word not in _ARTICLES)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end in `text` of each sentence; a line's end also ends a sentence."""
    start = 0
    for end in (*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)):
        if text[start:end].strip():
            lead = len(text[start:end]) - len(text[start:end].lstrip())
            yield start + lead, start + len(text[start:end].rstrip())
        start = end


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
