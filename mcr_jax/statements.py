"""Parses and writes numbered statements; no other module handles their numbering.

In: the text of a list, as published. Out: its items, or the list again.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from mcr_jax._markers import SPACES, Marker, markers

Style = Literal["1. ", "1) ", "(1) "]
_FORMAT: dict[Style, str] = {"1. ": "{}. ", "1) ": "{}) ", "(1) ": "({}) "}
_MAX_STYLES = 8  # of one kind, tried as the style of the list
_MAX_LEAP = {"number": 9, "letter": 3, "roman": 3, "bullet": 0}


def parse_statements(text: str) -> tuple[str, ...]:
    r"""Splits a list into the clinician's statements.

    A marker is a number, a letter, a Roman numeral or a bullet as lists write it: "1.", "1)",
    "(1)", "1:", "1 -", "1\.", "Step 1:", "**1.**", "### 1.", "> 1.", "①", "a)", "IV.", "•".
    Only a run of markers is a list, so decimals and numbers inside sentences stay:

    1. Markers that open a line; a literal "\n" also ends a line. A run has at least two markers and
       begins with 0, 1, or two consecutive numbers. Later numbers may be skipped or repeated;
       letters and numerals begin with the first two. A marker with a deeper indent than the item
       before it and without the next number is nested and stays inside its statement.
    2. Otherwise markers inside a line: each follows the end of a sentence and has the next number,
       or skips or repeats one. After the first, "1)", "(1)" and "①" may also follow white space
       outside parentheses; "1." may not, because of "grade 2. Then". A single number counts if it
       opens the text; single letters and bullets do not.

    Of several runs the first is the list, the others are nested; numbers take precedence over
    bullets unless they are indented deeper. Text before the first marker becomes the start of the
    first statement. Text without numbering is one statement; items without text are dropped; empty
    text gives ().

    Lossless: except for white space and invisible characters, the joined statements equal
    `strip_numbering(text)`. Takes linear time.
    """
    run = _numbering(text)
    if not run:
        pieces = [text]
    else:
        ends = [*(marker.start for marker in run[1:]), len(text)]
        pieces = [
            marker.kept + text[marker.end : end].lstrip(SPACES)
            for marker, end in zip(run, ends, strict=True)
        ]
        if preamble := text[: run[0].start].strip(SPACES):
            pieces[0] = f"{preamble} {pieces[0].strip(SPACES)}"
    return tuple(filter(None, (piece.strip(SPACES) for piece in pieces)))


def strip_numbering(text: str) -> str:
    """Removes the markers that `parse_statements` recognizes from `text`."""
    kept, position = [], 0
    for marker in _numbering(text):
        kept += text[position : marker.start], marker.kept
        position = marker.end
    return "".join((*kept, text[position:]))


def number_statements(statements: Sequence[str], style: Style = "1. ") -> str:
    """Writes statements as a numbered list, one item per line: the inverse of `parse_statements`.

    Exact for up to 999 statements without outer white space and markers of their own.
    """
    items = (_FORMAT[style].format(n) + item for n, item in enumerate(statements, start=1))
    return "\n".join(items)


def _numbering(text: str) -> list[Marker]:
    """Returns the markers of the list in `text`, in order; [] without a list."""
    found = markers(text)
    lines = _line_run(found)
    flows = [run for group in _by_style(found) if (run := _run_in_flow(text, group))]
    flow = min((run for run in flows if len(run) > 1), key=_start, default=[])
    if lines and (len(lines) >= len(flow) or lines[0].kind != flow[0].kind or _counts(lines)):
        return lines
    return flow or min(flows, key=_start, default=[])


def _start(run: Sequence[Marker]) -> int:
    return run[0].start


def _counts(run: Sequence[Marker]) -> bool:
    """Returns True if the numbers begin with 0 or 1 and are consecutive."""
    return run[0].number <= 1 and all(b.number == a.number + 1 for a, b in itertools.pairwise(run))


def _by_style(found: Iterable[Marker]) -> Iterable[list[Marker]]:
    groups: dict[tuple[str, str], list[Marker]] = collections.defaultdict(list)
    for marker in found:
        groups[marker.kind, marker.style].append(marker)
    return groups.values()


def _line_run(found: Iterable[Marker]) -> list[Marker]:
    """Returns the markers of the list whose items open lines; [] without one."""
    kinds: dict[str, list[Marker]] = collections.defaultdict(list)
    for marker in found:
        if marker.indent is not None:
            kinds[marker.kind].append(marker)
    runs = [run for group in kinds.values() for run in _line_runs(group)]
    numbered = min((r for r in runs if r[0].kind != "bullet"), key=_start, default=[])
    bullets = min((r for r in runs if r[0].kind == "bullet"), key=_start, default=[])
    if numbered and bullets:
        outer = bullets[0].start < numbered[0].start and bullets[0].indent < numbered[0].indent
        return bullets if outer else numbered
    return numbered or bullets


def _line_runs(group: Sequence[Marker]) -> Iterator[list[Marker]]:
    """Yields, for each style, the run of markers of one kind that begins with it."""
    for style in list(dict.fromkeys(marker.style for marker in group))[:_MAX_STYLES]:
        run = _line_run_of(group, style)
        first = next((n for n, pair in enumerate(itertools.pairwise(run)) if _begins(*pair)), None)
        if first is not None:
            yield run[first:]


def _begins(first: Marker, second: Marker) -> bool:
    if first.kind == "bullet":
        return True
    counts = second.number == first.number + 1
    if first.kind == "number":
        return first.number <= 1 or counts
    return first.number == 1 and counts


def _line_run_of(group: Sequence[Marker], style: str) -> list[Marker]:
    run: list[Marker] = []
    nested_at = None  # indent of the current nested list
    nested: set[str] = set()  # styles of nested lists
    for marker in group:
        if nested_at is not None and marker.indent >= nested_at:
            continue
        nested_at = None
        if not run:
            if marker.style == style and (
                marker.number == 1 or marker.kind in ("number", "bullet")
            ):
                run.append(marker)
            continue
        leap = marker.number - run[-1].number
        if marker.style != style and (leap != 1 or marker.style in nested):
            nested.add(marker.style)
        elif marker.indent > run[-1].indent and leap != 1:
            nested_at = marker.indent
        elif leap <= _MAX_LEAP[marker.kind] and (leap >= 0 or marker.kind == "number"):
            run.append(marker)
    return run


def _run_in_flow(text: str, group: Sequence[Marker]) -> list[Marker]:
    """Returns the run of markers of one style, at any position."""
    run: list[Marker] = []
    opened, counted = 0, 0  # open parentheses since the last marker of the run; counted up to here
    for marker in group:
        opened += text.count("(", counted, marker.start) - text.count(")", counted, marker.start)
        counted = marker.start
        if not (_begins_flow(marker) if not run else _follows(run, marker, opened <= 0)):
            continue
        run.append(marker)
        opened, counted = 0, marker.end
    return run if len(run) > 1 or (run and _is_lone_item(run[0])) else []


def _is_lone_item(marker: Marker) -> bool:
    """Returns True if one marker alone is a list: "1. Fever", but not "1 - Week" or "a) rash"."""
    return marker.opens_text and marker.kind == "number" and marker.style not in ("1-", "1:")


def _begins_flow(marker: Marker) -> bool:
    if marker.kind == "number" and marker.style[0] != "[":  # "[1]" in the flow cites an article
        return marker.opens_sentence and marker.number <= 1
    return marker.opens_text and marker.number <= 1


def _follows(run: Sequence[Marker], marker: Marker, outside: bool) -> bool:
    """Returns True if `marker` continues a run; `outside` is True outside parentheses."""
    leap = marker.number - run[-1].number
    counts = leap == (0 if marker.kind == "bullet" else 1)
    if marker.opens_sentence and (counts or (marker.capital and leap in (0, 2))):
        return True
    closed = marker.style[-1] in ")]①" or marker.kind == "bullet"
    labelled = marker.style[0].isalpha() and len(marker.style) > 2 and run[0].opens_text
    return counts and outside and (closed or labelled)
