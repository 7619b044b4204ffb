r"""Markers of lists: "1.", "Step 1:", "**1.**", "> 1)", "a)", "IV.", "①", "•" and their like.

In: any text. Out: every place that reads as a marker, whether or not it belongs to a list, in time
linear in the text. `statements` decides which of them are a list.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, NamedTuple

# Soft hyphen, zero-width space, marks of direction, BOM, ...
_INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_BLANK = rf" \t\x1f\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000{_INVISIBLE}"  # none ends a line
_BREAKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
# A literal backslash and n ends a line, too; it is taken out where a marker follows.
_BREAK = re.compile(rf"\r\n|[{_BREAKS}]|(?P<literal>(?:(?:\\r)?\\n[{_BLANK}]*+)++)")
_BULLET = r"\\?[-*+–•●○◦▪■□▸▶►◆◇➢➤✓✔★‣⁃∙·・\uf0a7\uf0b7\uf0d8]"  # the last are those of Word
# What may stand before a number: quotes, headings and bullets of Markdown.
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
_AROUND = 40  # characters that are looked at before and after a marker
# White space and what is as invisible.
SPACES = (
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b"
    "\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2065\u2066\u2067\u2068\u2069\ufeff"
)


class Marker(NamedTuple):
    """One place that reads as a marker.

    Attributes:
      kind: of what it counts with.
      style: what the markers of one list have in common, as "1.", "(1)" or "step 1:".
      number: its value; 0 for a bullet.
      start, end: its span in the text, with what Markdown writes before it.
      kept: emphasis within the span that belongs to the statement, as in "**1. Fever**".
      indent: columns before it, or None if it does not open its line.
      opens_text: whether nothing stands before it.
      opens_sentence: whether it opens the text or its line, or follows the end of a sentence.
      spaced: whether white space or the end of the text follows.
      capital: whether the statement begins with a capital letter, a script without case, or a mark.
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
    """Every marker of `text` in order; "i)" is there twice, as a letter and as a numeral."""
    opening = len(text) - len(text.lstrip(SPACES))
    found: list[Marker] = []
    taken: set[int] = set()  # where the bullets and numbers that may open a line begin
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
    """For each line, where a marker's span starts and where the line does."""
    yield 0, 0
    for match in _BREAK.finditer(text):
        yield match.start() if match["literal"] else match.end(), match.end()


def _read(match: re.Match[str], place: _Place) -> Iterator[Marker]:
    """The markers that one match stands for: none, one, or a letter and a numeral."""
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
        wide = not (match["stop"] or "").isascii()  # no space follows a full-width mark
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
    before = place.text[max(0, place.start - _AROUND) : place.start].rstrip(SPACES)
    after = place.text[end : end + _AROUND]
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
