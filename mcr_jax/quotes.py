"""Quotes: where one stands in a text, however either is set.

Judges' quotes are verified and highlighted by this one rule, so what is shown is what was counted.
Verification is exact after folding: close is not enough, for fuzzy matching forgives a lost "no"
and another number.
"""

import bisect
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

# Quotation marks and dashes, and the plain one that each reads as.
PLAIN = (
    dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−", "-")
)
_SAME = str.maketrans(PLAIN | {"‹": "<", "›": ">"})  # `prompts.inert` writes ‹ for <
_KNOWN = 1 << 14  # characters whose folded form is remembered

# Scripts that put no spaces between words, as the inside of a character class.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_PER_WORD = 3  # of their characters make a word's worth of text
_ONE_UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"(?:(?![{_UNSPACED}])[^\W_])+(?:[.,'-](?:(?![{_UNSPACED}])[^\W_])+)*")
_READ = re.compile(r"[^\W_]")  # a letter or a digit
_SIGNED = re.compile(r"[<>≤≥±+~=-]\s?(?=\d)")  # a sign that belongs to the number behind it
_SIGN_BEFORE = re.compile(r"[<>≤≥±]\s?\Z|(?:^|[\s(])[+~-]\Z")  # before a number
_DOTS = r"(?:\.(?:\s?\.){2,}|…|⋯)"
_ELLIPSIS = re.compile(rf"\[\s?{_DOTS}\s?\]|\(\s?{_DOTS}\s?\)|{_DOTS}")

# Markdown's marks: of emphasis and code at the edge of a word, of headings, quotes and lists where
# a line begins.
_MARKDOWN = re.compile(
    r"(?<![\w*`~])[*_`~]++|(?<![*_`~])[*_`~]++(?![^\W_])|(?<=[^\W\d_])\*\*(?=[^\W\d_])"
    r"|^[ \t]{0,3}(?:#{1,6}[ \t]|>[ \t]?(?![ \t]*\d))",
    re.MULTILINE,
)
_MARKS = "*_`~#>"  # one of which each of these has
_DENIALS = {
    *("no", "not", "never", "nor", "neither", "without", "non", "cannot", "denied", "denies"),
}
# In scripts without spaces, what stands right before that which it denies.
_UNSPACED_DENIALS = (*"不无無没沒未非", "没有", "沒有", "否认", "否認", "ไม่", "ไม่มี")
_LONGEST_GAP = 300  # characters that an ellipsis may stand for
_SHORTEST_PART = 3  # words of a part of a quote that has an ellipsis in it
_OVERLAPPING = 100  # tries to find a quote within a place where it does not stand as whole words


@functools.lru_cache(32)  # a quote is looked at, measured and searched for
def normal(text: str) -> str:
    """One form for what reads the same.

    Compatibility characters are taken apart (thin spaces, subscripts, full-width letters, …),
    accents and invisible characters dropped, quotation marks and dashes made plain, case folded,
    and every run of white space made one space, none at the ends.
    """
    return " ".join(text.translate(_FOLD).split())


def find(quote: str, text: str) -> list[tuple[int, int]]:
    """Start and end in `text` of every place where `quote` stands; see `Text.find`."""
    return _text(text).find(quote)


@functools.lru_cache(64)  # the statements of one case are asked for many times
def size(text: str) -> float:
    """Words in a text; in scripts without spaces three characters count as one word."""
    folded = normal(text)
    unspaced = 0 if folded.isascii() else len(_ONE_UNSPACED.findall(folded))
    return len(_WORD.findall(folded)) + unspaced / _UNSPACED_PER_WORD


class Text:
    """A text that is folded once and searched for many quotes."""

    def __init__(self, text: str):
        self._steps: list[tuple[list[int], list[int]]] = []  # from the last one to the first
        marks = _MARKDOWN.finditer(text) if _has_marks(text) else ()
        plain = self._without(text, (match.span() for match in marks))
        folded = self._folded(plain)
        runs = re.finditer("  +", folded) if "  " in folded else ()
        self._folded_text = self._without(folded, ((m.start() + 1, m.end()) for m in runs))

    def find(self, quote: str) -> list[tuple[int, int]]:
        """Start and end of every place where `quote` stands, both in the form of `normal`.

        It stands there as whole words and numbers, with the sign of a number it begins with, and
        not right behind a "no" or a "non-" that it leaves out. Markdown's marks, and punctuation
        around the quote, are not part of it. Else an ellipsis in it stands for up to 300 characters
        without a denial; the parts around it have at least three words and follow in order. A quote
        without a word stands nowhere.
        """
        inner = _inner(quote)
        found = list(self._matches(inner)) if inner else []
        parts = [] if found else list(filter(None, map(_inner, _ELLIPSIS.split(quote))))
        if len(parts) > 1 and all(size(part) >= _SHORTEST_PART for part in parts):
            found = list(self._matches(parts[0]))
            for part in parts[1:]:
                found = list(self._followed(found, list(self._matches(part)))) if found else []
        return [(self._place(start), self._place(end - 1) + 1) for start, end in found]

    def verifies(self, quote: str, statement: str, least: int) -> bool:
        """Whether `quote` stands here and is long enough to show that `statement` is made.

        Long enough are `least` words, or as many as the statement has where that has fewer.
        """
        return size(quote) >= min(least, size(statement)) and bool(self.find(quote))

    def _matches(self, inner: str) -> Iterator[tuple[int, int]]:
        text, failed = self._folded_text, 0
        at = text.find(inner)
        while at >= 0:
            end = at + len(inner)
            if self._is_whole(at, end):
                if not _denied(text, at):
                    yield at, end
                at = text.find(inner, end)
            else:
                failed += 1
                at = text.find(inner, at + 1 if failed < _OVERLAPPING else end)

    def _is_whole(self, start: int, end: int) -> bool:
        """Whether neither a word nor a number goes on before or behind."""
        text = self._folded_text
        before, behind = text[max(0, start - 2) : start], text[end : end + 2]
        if before and _goes_on(before[-1], text[start]):
            return False
        if behind and _goes_on(text[end - 1], behind[0]):
            return False
        numbers = re.fullmatch(r"\d[.,']", before) or re.fullmatch(r"[.,']\d", behind)
        if text[start].isdecimal():
            numbers = numbers or re.fullmatch(r"\d[/:×^-]", before)
            numbers = numbers or _SIGN_BEFORE.search(before)
        if text[end - 1].isdecimal():
            numbers = numbers or re.fullmatch(r"[/:×^-]\d", behind)
        return not numbers

    def _followed(
        self, found: list[tuple[int, int]], places: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Each of `found`, up to the end of the next of `places` that an ellipsis may reach."""
        starts = [start for start, _ in places]
        for start, end in found:
            following = bisect.bisect_left(starts, end)
            if following == len(places):
                continue
            gap = self._folded_text[end : min(starts[following], end + _LONGEST_GAP + 1)]
            if len(gap) <= _LONGEST_GAP and not any(map(_denies, gap.split())):
                yield start, places[following][1]

    def _without(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        """`text` less `spans`, which are in order; remembers what place comes from where."""
        kept, at, back, position, length = [], [0], [0], 0, 0
        for start, end in spans:
            kept.append(text[position:start])
            length += start - position
            position = end
            at.append(length)
            back.append(end)
        if position:
            self._steps.insert(0, (at, back))
        return "".join((*kept, text[position:]))

    def _folded(self, text: str) -> str:
        """`text` folded character by character; remembers where that changes its length."""
        at, back, shift, parts, position = [0], [0], 0, [], 0
        for match in re.finditer(r"[^\x00-\x7f]", text):
            start, folded = match.start(), _FOLD[ord(match[0])]
            # Python translates text that is ASCII alone several times faster.
            parts += (text[position:start].translate(_FOLD), folded)
            width, position = len(folded), start + 1
            if width != 1:
                for part in range(width):  # all parts of it come from its place
                    at.append(start + shift + part)
                    back.append(start)
                shift += width - 1
                at.append(start + shift + 1)
                back.append(start + 1)
        if len(at) > 1:
            self._steps.insert(0, (at, back))
        return "".join((*parts, text[position:].translate(_FOLD)))

    def _place(self, place: int) -> int:
        """The place in the text as it was."""
        for at, back in self._steps:
            step = bisect.bisect_right(at, place) - 1
            place = back[step] + place - at[step]
        return place


@functools.lru_cache(16)  # one trace is searched for many quotes
def _text(text: str) -> Text:
    return Text(text)


class _Fold(dict):
    """Code point to what it is in normal form, as `str.translate` asks for it."""

    def __missing__(self, code: int) -> str:
        folded = "".join(_folded_parts(chr(code)))
        if len(self) < _KNOWN:  # a hostile text may hold every character there is
            self[code] = folded
        return folded


_FOLD = _Fold()


def _folded_parts(character: str) -> Iterator[str]:
    plain = character.translate(_SAME)
    parts = unicodedata.normalize("NFKD", plain)
    # Accents of Latin, Greek and Cyrillic are dropped; in other scripts a mark makes another word.
    if not any("\u0300" <= part <= "\u036f" for part in parts):
        parts = unicodedata.normalize("NFKC", plain)
    for part in parts.translate(_SAME).casefold():
        accent = "\u0300" <= part <= "\u036f" and part != "\u0338"  # a stroke, as in ≠
        accent = accent or "\ufe00" <= part <= "\ufe0f"
        if accent or unicodedata.category(part) == "Cf":
            continue
        yield " " if part.isspace() else part


def _inner(quote: str) -> str:
    """A quote in normal form, without the punctuation around it."""
    folded = normal(_MARKDOWN.sub("", quote) if _has_marks(quote) else quote)
    first = _READ.search(folded)
    if first is None:
        return ""
    last = _READ.search(folded[::-1])
    start = first.start()
    for sign in (start - 1, start - 2):
        if sign >= 0 and (match := _SIGNED.match(folded, sign)) and match.end() == start:
            start = sign
            break
    return folded[start : len(folded) - last.start()]


def _has_marks(text: str) -> bool:
    return any(map(text.__contains__, _MARKS))


def _goes_on(one: str, other: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    if not (_READ.match(one) and _READ.match(other)):
        return False
    if one.isdecimal() and other.isdecimal():
        return True
    return not (_ONE_UNSPACED.match(one) or _ONE_UNSPACED.match(other))


def _denied(text: str, start: int) -> bool:
    """Whether the word before `start` denies what follows."""
    # Quotation marks and parentheses may open what it denies.
    before = text[max(0, start - 16) : start].rstrip("\"'([")
    if re.search(r"(?<![^\W_])non-\Z", before) or before.endswith(_UNSPACED_DENIALS):
        return True
    *_, word = ("", *before.split())
    # A word that ends its sentence or clause denies what stands before it.
    return before[-1:] == " " and word[-1:].isalpha() and _denies(word)


def _denies(word: str) -> bool:
    bare = word.strip("\"'.,;:()[]-")
    return bare in _DENIALS or bare.endswith("n't")
