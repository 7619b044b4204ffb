r"""Finds list markers such as "1.", "Step 1:", "**1.**", "> 1)", "a)", "IV.", "①" and "•".

In: any text. Out: every possible marker, in linear time. `statements` decides which form a list.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, NamedTuple

# Soft hyphen, zero-width space, marks of direction, BOM, ...
_INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_BLANK = rf" \t\x1f\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000{_INVISIBLE}"  # within a line
_BREAKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
# A literal backslash and n also ends a line; it is removed before a marker.
_BREAK = re.compile(rf"\r\n|[{_BREAKS}]|(?P<literal>(?:(?:\\r)?\\n[{_BLANK}]*+)++)")
_BULLET = r"\\?[-*+–•●○◦▪■□▸▶►◆◇➢➤✓✔★‣⁃∙·・\uf0a7\uf0b7\uf0d8]"  # the last three are of Word
# Markdown before a number: quotes, headings and bullets.
_PREFIX = re.compile(
    rf"(?:[{_BLANK}]*+>)*+(?P<indent>[{_BLANK}]*+)(?:\#{{1,6}}[{_BLANK}]++)?+"
    rf"(?P<bullet>{_BULLET}(?=[{_BLANK}])[{_BLANK}]*+|[•●▪‣](?=\S))?+"
)
_LABEL = (
    r"(?i:(?:reasoning )?step|statement|reason|rationale|argument|point|item|finding|diagnosis"
    r"|differential(?: diagnosis)?|hypothesis|observation|consideration|no\.|\#)"
)
_CIRCLED = "①-⒛⓪-⓿❶-➓"
_DASH = rf"[{_BLANK}]{{0,4}}[-–—](?=[{_BLANK}]++(?!\d))"
_MARKER = (
    rf"(?P<mark>\*{{1,3}}|_{{1,3}})?(?:(?P<circled>[{_CIRCLED}])(?:[.．)）:：、]|{_DASH})?"
    rf"|(?P<label>{_LABEL}[{_BLANK}]{{0,4}})?(?P<open>\\?[(（\[［【])?"
    r"(?:(?P<number>\d{1,3})|(?P<letter>[ivx]{1,6}|[IVX]{1,6}|[A-Za-zⅠ-Ⅻⅰ-ⅻＡ-Ｚａ-ｚ]))"
    r"(?P<inner>(?(mark)(?P=mark)|(?!)))?"
    rf"(?:(?P<stop>\\?[)）\]］】][.:]?|\\?[.．](?!\.)[):]?|[{_BLANK}]?[:：]|、|\ufe0f?\u20e3)"
    rf"|(?P<dash>{_DASH})"
    rf"|(?(label)(?=[{_BLANK}]{{0,9}}(?:[{_BREAKS}]|\\n|\Z))|(?!))))"
    r"(?P<outer>(?(mark)(?(inner)(?!)|(?P=mark))|(?!)))?"
)
_ON_LINE = re.compile(_MARKER)
_IN_FLOW = re.compile(
    rf"(?:(?<![^\s{_INVISIBLE}。！？；])|(?=[{_CIRCLED}]))"
    rf"(?P<prefix>(?:[-*•>]|\#{{1,6}})[{_BLANK}]{{1,4}}|[{_INVISIBLE}]{{1,4}})?+(?P<core>{_MARKER})"
)
_FLOW_BULLET = re.compile(r"(?<!\S)[•●▪‣]")
_PLAIN = str.maketrans("（）［］【】．：、–—", "()[][].:.--")
_SENTENCE_ENDS = ".!?;:…。！？；："
_CLOSERS = "”’»\"')]*_）」"
_ABBREVIATED = re.compile(
    r"(?:^|\W)(?:figs?|nos?|vs|approx|ca|al|dr|st|refs?|vol|pp?|e\.g|i\.e)\.\Z", re.IGNORECASE
)
_CONTEXT_CHARS = 40  # examined before and after a marker
# White space and invisible characters.
SPACES = (
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b"
    "\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2065\u2066\u2067\u2068\u2069\ufeff"
)


class Marker(NamedTuple):
    """Possible list marker in a text.

    Attributes:
      kind: kind of its count.
      style: form that the markers of one list share, such as "1.", "(1)" or "step 1:".
      number: value; 0 for a bullet.
      start, end: span in the text, including Markdown before it.
      kept: emphasis within the span that belongs to the statement, as in "**1. Fever**".
      indent: columns before it; None if it does not open its line.
      opens_text: True if no text precedes it.
      opens_sentence: True if it opens the text or its line, or follows the end of a sentence.
      spaced: True if white space or the end of the text follows.
      capital: True if the statement begins with a capital letter, a letter without case, or a
        quotation mark, bracket or emphasis.
    """

    kind: Literal["number", "letter", "roman", "bullet"]
    style: str
    number: int
    start: int
    end: int
    kept: str
    indent: int | None
    opens_text: bool
    opens_sentence: bool
    spaced: bool
    capital: bool


class _Place(NamedTuple):
    """Position of a marker in its text; fields as in `Marker`."""

    text: str
    start: int
    indent: int | None
    opens_text: bool


def markers(text: str) -> list[Marker]:
    """Returns all markers of `text` in order; "i)" twice, as a letter and as a numeral."""
    opening = len(text) - len(text.lstrip(SPACES))
    found: list[Marker] = []
    taken: set[int] = set()  # starts of bullets and numbers that may open a line
    for start, line in _lines(text):
        prefix = _PREFIX.match(text, line)
        indent = len(re.sub(f"[{_INVISIBLE}]", "", prefix["indent"]))
        taken |= {prefix.start("bullet"), prefix.end()}
        place = _Place(text, start, indent, start <= opening)
        if match := _ON_LINE.match(text, prefix.end()):
            found += _read(match, place)
        if bullet := prefix["bullet"]:
            found.append(_marker(place, "bullet", bullet.strip(), 0, prefix.end()))
    for match in _IN_FLOW.finditer(text):
        if match.start("core") not in taken:
            found += _read(match, _Place(text, match.start(), None, match.start() <= opening))
    for match in _FLOW_BULLET.finditer(text):
        if match.start() not in taken:
            place = _Place(text, match.start(), None, match.start() <= opening)
            found.append(_marker(place, "bullet", match[0], 0, match.end()))
    return sorted(found, key=lambda marker: marker.end)


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Yields, for each line, the start of a marker's span and the start of the line."""
    yield 0, 0
    for match in _BREAK.finditer(text):
        yield match.start() if match["literal"] else match.end(), match.end()


def _read(match: re.Match[str], place: _Place) -> Iterator[Marker]:
    """Yields the markers of one match: none, one, or a letter and a numeral."""
    closed = bool(match["inner"] or match["outer"])
    kept = "" if closed else match["mark"] or ""
    end, follows = match.end(), place.text[match.end() : match.end() + 1]
    if match["circled"]:
        number = int(unicodedata.numeric(match["circled"]))
        yield _marker(place, "number", "①", number, end, kept)
        return
    stop = (match["stop"] or match["dash"] or "").strip("\\" + SPACES).translate(_PLAIN)
    opened = (match["open"] or "").strip("\\").translate(_PLAIN)
    if opened and stop[:1] not in (")", "]"):
        return
    if follows.isdecimal() and stop[-1:] in (".", ":"):  # 38.5, 1:30
        return
    label = " ".join((match["label"] or "").lower().split())
    if match["number"]:
        marker = _marker(
            place, "number", f"{label}{opened}1{stop}", int(match["number"]), end, kept
        )
        on_line = place.indent is not None and (follows.isalpha() or stop[-1:] in (")", "]"))
        if marker.spaced or marker.capital or on_line:
            yield marker
        return
    letters = unicodedata.normalize("NFKC", match["letter"])
    style = f"{label}{opened}{'A' if letters.isupper() else 'a'}{stop}"
    for kind, number in _values(letters.lower()).items():
        marker = _marker(place, kind, style, number, end, kept)
        wide = not (match["stop"] or "").isascii()  # a full-width mark needs no space
        species = kind == "letter" and style == "A." and not marker.capital  # "E. coli"
        on_line = place.indent is not None and (marker.capital or stop[-1:] in (")", "]"))
        if (marker.spaced or closed or wide or on_line) and not species:
            yield marker


def _values(letters: str) -> dict[str, int]:
    """Returns the values of small letters: {"letter": 1 to 26} and {"roman": 1 to 39}, if any."""
    values = {"letter": ord(letters) - ord("a") + 1} if len(letters) == 1 else {}
    digits = [{"i": 1, "v": 5, "x": 10}.get(letter, 0) for letter in letters]
    if all(digits):
        pairs = zip(digits, [*digits[1:], 0], strict=True)
        values["roman"] = sum(-digit if digit < after else digit for digit, after in pairs)
    return values


def _marker(place: _Place, kind: str, style: str, number: int, end: int, kept: str = "") -> Marker:
    before = place.text[max(0, place.start - _CONTEXT_CHARS) : place.start].rstrip(SPACES)
    after = place.text[end : end + _CONTEXT_CHARS]
    first = after.strip(SPACES)[:1]
    return Marker(
        kind=kind,
        style=style,
        number=number,
        start=place.start,
        end=end,
        kept=kept,
        indent=place.indent,
        opens_text=place.opens_text,
        opens_sentence=place.indent is not None
        or (
            before.rstrip(_CLOSERS)[-1:] in _SENTENCE_ENDS  # "" is in every str
            and not _ABBREVIATED.search(before)
        ),
        spaced=not after or after[0] in SPACES,
        capital=(first.isalpha() and not first.islower()) or first in tuple("“\"‘'*_(["),
    )
