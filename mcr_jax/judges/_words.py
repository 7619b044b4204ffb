"""Splits texts into normalized words, names and sentences, for the judges."""

import re
from collections.abc import Iterator

from mcr_jax.quotes import normal

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_ARTICLES = frozenset(("a", "an", "the"))
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]”’»]*(?=\s)|(?=\n)")


def words(text: str) -> list[str]:
    """Returns the normalized words of `text`, without possessive and plural endings."""
    found = _WORD.findall(re.sub(r"(?<=\w)'s\b", "", normal(text)))
    return [_singular(word) for word in found]


def name(text: str) -> tuple[str, ...]:
    """Returns the words of a disease's name without articles; spelling variants become equal."""
    return tuple(word for word in words(text) if word not in _ARTICLES)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yields start and end of each sentence; the end of a line also ends a sentence."""
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
