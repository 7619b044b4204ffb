"""Quotes: where one stands in a text, however either is set.

Judges' quotes are verified and highlighted by this one rule, so what is shown is what was counted.
"""

import functools
import re
import unicodedata

# Quotation marks and dashes, and the plain one that each reads as.
PLAIN = (
    dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−", "-")
)
_SAME = str.maketrans(PLAIN | {"‹": "<", "›": ">"})  # `prompts.inert` writes ‹ for <


def normal(text: str) -> str:
    """One form for what reads the same.

    Compatibility characters are taken apart (NFKD: thin spaces, subscripts, full-width letters, …),
    accents and invisible characters dropped, quotation marks and dashes made plain, case folded,
    and every run of white space made one space, none at the ends.
    """
    return _fold(text)[0].strip()


def find(quote: str, text: str) -> list[tuple[int, int]]:
    """Start and end in `text` of every place where `quote` stands, both in normal form.

    It stands there as whole words and numbers. Quotation marks, ellipses and other punctuation
    around the quote are not part of it. A quote without a word in it stands nowhere.
    """
    inner = re.sub(r"^[\W_]+|[\W_]+$", "", _fold(quote)[0])
    if not inner:
        return []
    folded, places = _fold(text)
    whole = rf"(?<![^\W_])(?<!\d[.,]){re.escape(inner)}(?![^\W_]|[.,]\d)"
    return [
        (places[match.start()], places[match.end() - 1] + 1) for match in re.finditer(whole, folded)
    ]


@functools.lru_cache(16)  # one trace is searched for many quotes
def _fold(text: str) -> tuple[str, list[int]]:
    """The parts of `text` in one form, and for each of them the place in `text` it comes from."""
    folded: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        same = unicodedata.normalize("NFKD", character.translate(_SAME))
        for c in same.translate(_SAME).casefold():
            if unicodedata.category(c) in ("Cf", "Mn"):
                continue
            if c.isspace():
                if folded and folded[-1] == " ":
                    continue
                c = " "
            folded.append(c)
            places.append(place)
    return "".join(folded), places
