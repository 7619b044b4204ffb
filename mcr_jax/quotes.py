"""Finds quotes in a text, independent of typography.

The same rule verifies and highlights judges' quotes, so the report shows what was counted. Matching
is exact after normalization, not fuzzy: fuzzy matching would ignore a lost "no" or another number.
"""

import bisect
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

# Quotation marks and dashes, with their plain form.
PLAIN = (
    dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−", "-")
)
_SAME = str.maketrans(PLAIN | {"‹": "<", "›": ">"})  # `prompts.inert` writes ‹ for <
_MAX_FOLDED = 1 << 14  # characters whose folded form is cached

# Scripts that put no spaces between words, as the inside of a character class.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_PER_WORD = 3  # characters of these scripts that count as one word
_ONE_UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"(?:(?![{_UNSPACED}])[^\W_])+(?:[.,'-](?:(?![{_UNSPACED}])[^\W_])+)*")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_SIGNED = re.compile(r"[<>≤≥±+~=-]\s?(?=\d)")  # a sign with the number after it
_SIGN_BEFORE = re.compile(r"[<>≤≥±]\s?\Z|(?:^|[\s(])[+~-]\Z")  # before a number
_DOTS = r"(?:\.(?:\s?\.){2,}|…|⋯)"
_ELLIPSIS = re.compile(rf"\[\s?{_DOTS}\s?\]|\(\s?{_DOTS}\s?\)|{_DOTS}")

# Markup of Markdown: emphasis and code at the edge of a word, headings and quotes at the start of a
# line.
_MARKDOWN = re.compile(
    r"(?<![\w*`~])[*_`~]++|(?<![*_`~])[*_`~]++(?![^\W_])|(?<=[^\W\d_])\*\*(?=[^\W\d_])"
    r"|^[ \t]{0,3}(?:#{1,6}[ \t]|>[ \t]?(?![ \t]*\d))",
    re.MULTILINE,
)
_MARKS = "*_`~#>"  # any such markup has one of these
_DENIALS = {
    *("no", "not", "never", "nor", "neither", "without", "non", "cannot", "denied", "denies"),
}
# Denials in scripts without spaces, directly before the denied words.
_UNSPACED_DENIALS = (*"不无無没沒未非", "没有", "沒有", "否认", "否認", "ไม่", "ไม่มี")
_MAX_GAP_CHARS = 300  # that an ellipsis may replace
_MIN_PART_WORDS = 3  # of each part of a quote with an ellipsis
_MAX_OVERLAPPING = 100  # matches that are not whole words before overlapping ones are skipped


@functools.lru_cache(32)  # each quote is normalized several times
def normal(text: str) -> str:
    """Normalizes a text: typographic variants become equal.

    Decomposes compatibility characters (thin spaces, subscripts, full-width letters, …), drops
    accents and invisible characters, makes quotation marks and dashes plain, folds case, and
    collapses white space.
    """
    return " ".join(text.translate(_FOLD).split())


def find(quote: str, text: str) -> list[tuple[int, int]]:
    """Returns start and end of every match of `quote` in `text`; see `Text.find`."""
    return _text(text).find(quote)


@functools.lru_cache(64)  # statements of one case are measured many times
def size(text: str) -> float:
    """Counts words; in scripts without spaces three characters are one word."""
    folded = normal(text)
    unspaced = 0 if folded.isascii() else len(_ONE_UNSPACED.findall(folded))
    return len(_WORD.findall(folded)) + unspaced / _UNSPACED_PER_WORD


class Text:
    """Text that is normalized once and searched for many quotes."""

    def __init__(self, text: str):
        self._steps: list[tuple[list[int], list[int]]] = []  # index maps, last step first
        marks = _MARKDOWN.finditer(text) if _has_marks(text) else ()
        plain = self._without(text, (match.span() for match in marks))
        folded = self._folded(plain)
        runs = re.finditer("  +", folded) if "  " in folded else ()
        self._folded_text = self._without(folded, ((m.start() + 1, m.end()) for m in runs))

    def find(self, quote: str) -> list[tuple[int, int]]:
        """Returns start and end of every match of `quote`, compared in the form of `normal`.

        A match consists of whole words and numbers, includes the sign of its first number, and does
        not directly follow a "no" or "non-". Markdown and punctuation around the quote are ignored.
        If there is no such match, an ellipsis matches up to 300 characters without a denial; the
        parts around it have at least three words and follow in order. A quote without words never
        matches.
        """
        inner = _inner(quote)
        found = list(self._matches(inner)) if inner else []
        parts = [] if found else list(filter(None, map(_inner, _ELLIPSIS.split(quote))))
        if len(parts) > 1 and all(size(part) >= _MIN_PART_WORDS for part in parts):
            found = list(self._matches(parts[0]))
            for part in parts[1:]:
                found = list(self._followed(found, list(self._matches(part)))) if found else []
        return [(self._place(start), self._place(end - 1) + 1) for start, end in found]

    def verifies(self, quote: str, statement: str, words: int) -> bool:
        """Returns True if the text has `quote`, of `words` words or as many as `statement`."""
        return size(quote) >= min(words, size(statement)) and bool(self.find(quote))

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
                at = text.find(inner, at + 1 if failed < _MAX_OVERLAPPING else end)

    def _is_whole(self, start: int, end: int) -> bool:
        """Returns True if no word or number continues before `start` or after `end`."""
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
        """Extends each of `found` to the next of `places` if an ellipsis may replace the gap."""
        starts = [start for start, _ in places]
        for start, end in found:
            following = bisect.bisect_left(starts, end)
            if following == len(places):
                continue
            gap = self._folded_text[end : min(starts[following], end + _MAX_GAP_CHARS + 1)]
            if len(gap) <= _MAX_GAP_CHARS and not any(map(_denies, gap.split())):
                yield start, places[following][1]

    def _without(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        """Removes the ordered `spans` from `text` and records the index map."""
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
        """Normalizes `text` character by character and records the index map."""
        at, back, shift, parts, position = [0], [0], 0, [], 0
        for match in re.finditer(r"[^\x00-\x7f]", text):
            start, folded = match.start(), _FOLD[ord(match[0])]
            # Python translates pure ASCII several times faster.
            parts += (text[position:start].translate(_FOLD), folded)
            width, position = len(folded), start + 1
            if width != 1:
                for part in range(width):  # all map to the one character
                    at.append(start + shift + part)
                    back.append(start)
                shift += width - 1
                at.append(start + shift + 1)
                back.append(start + 1)
        if len(at) > 1:
            self._steps.insert(0, (at, back))
        return "".join((*parts, text[position:].translate(_FOLD)))

    def _place(self, place: int) -> int:
        """Converts an index into the original text."""
        for at, back in self._steps:
            step = bisect.bisect_right(at, place) - 1
            place = back[step] + place - at[step]
        return place


@functools.lru_cache(16)  # a trace is searched for many quotes
def _text(text: str) -> Text:
    return Text(text)


class _Fold(dict):
    """Table for `str.translate`: code point to its normal form."""

    def __missing__(self, code: int) -> str:
        folded = "".join(_folded_parts(chr(code)))
        if len(self) < _MAX_FOLDED:  # a hostile text may hold all characters of Unicode
            self[code] = folded
        return folded


_FOLD = _Fold()


def _folded_parts(character: str) -> Iterator[str]:
    plain = character.translate(_SAME)
    parts = unicodedata.normalize("NFKD", plain)
    # Drops accents of Latin, Greek and Cyrillic; in other scripts a mark changes the word.
    if not any("\u0300" <= part <= "\u036f" for part in parts):
        parts = unicodedata.normalize("NFKC", plain)
    for part in parts.translate(_SAME).casefold():
        accent = "\u0300" <= part <= "\u036f" and part != "\u0338"  # a stroke, as in ≠
        accent = accent or "\ufe00" <= part <= "\ufe0f"
        if accent or unicodedata.category(part) == "Cf":
            continue
        yield " " if part.isspace() else part


def _inner(quote: str) -> str:
    """Returns a quote in normal form without the punctuation around it."""
    folded = normal(_MARKDOWN.sub("", quote) if _has_marks(quote) else quote)
    first = _LETTER_OR_DIGIT.search(folded)
    if first is None:
        return ""
    last = _LETTER_OR_DIGIT.search(folded[::-1])
    start = first.start()
    for sign in (start - 1, start - 2):
        if sign >= 0 and (match := _SIGNED.match(folded, sign)) and match.end() == start:
            start = sign
            break
    return folded[start : len(folded) - last.start()]


def _has_marks(text: str) -> bool:
    return any(map(text.__contains__, _MARKS))


def _goes_on(one: str, other: str) -> bool:
    """Returns True if two adjacent characters belong to one word."""
    if not (_LETTER_OR_DIGIT.match(one) and _LETTER_OR_DIGIT.match(other)):
        return False
    if one.isdecimal() and other.isdecimal():
        return True
    return not (_ONE_UNSPACED.match(one) or _ONE_UNSPACED.match(other))


def _denied(text: str, start: int) -> bool:
    """Returns True if the word before `start` denies the words after it."""
    # The denied words may open with a quotation mark or parenthesis.
    before = text[max(0, start - 16) : start].rstrip("\"'([")
    if re.search(r"(?<![^\W_])non-\Z", before) or before.endswith(_UNSPACED_DENIALS):
        return True
    *_, word = ("", *before.split())
    # A denial at the end of a sentence or clause belongs to the words before it.
    return before[-1:] == " " and word[-1:].isalpha() and _denies(word)


def _denies(word: str) -> bool:
    bare = word.strip("\"'.,;:()[]-")
    return bare in _DENIALS or bare.endswith("n't")
