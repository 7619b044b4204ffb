"""Numbered statements: the one place where the clinician's numbering is read or written.

In: the text of a numbered list, as published. Out: its items, or the list again.
"""

import collections
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Style = Literal["1. ", "1) ", "(1) "]
_FORMAT: dict[Style, str] = {"1. ": "{}. ", "1) ": "{}) ", "(1) ": "({}) "}
_MARKER = re.compile(r"(?<!\S)(?:([1-9][0-9]{0,2})(\.|\))|\(([1-9][0-9]{0,2})\))(?!\S)")
_SENTENCE_ENDS = ".!?;:…"
_CLOSERS = "”’»\"')]"


class _Marker(NamedTuple):
    style: Style
    number: int
    start: int  # span in the text, without the white space around
    end: int
    indent: int | None  # columns before it, or None if it does not open its line
    opens_sentence: bool  # at the start of the text or after the end of a sentence
    opens_text: bool


def parse_statements(text: str) -> tuple[str, ...]:
    """Takes a numbered list apart: the one parser of the clinician's statements.

    A marker is "1.", "1)" or "(1)" between white space. Markers are numbering only as a run that
    counts 1, 2, 3, … in one style, so decimals and numbers inside sentences stay where they are:

    1. Markers that open a line are tried first; a run needs at least two. A list that restarts at 1
       deeper in is nested and stays inside its statement.
    2. Else markers in the flow of a line: each must follow the end of a sentence. After the first,
       "1)" and "(1)" may also follow plain white space outside parentheses; "1." may not, for
       "grade 2. Then" looks the same. A lone marker counts where it opens the text.

    Where several styles qualify, the one that starts first is the list and the others are nested.
    What stands before the first marker is kept, at the head of the first statement. Text without
    numbering is one statement, an item without text is none, and empty text gives ().

    Lossless: but for white space, the statements together are `strip_numbering(text)`.
    """
    markers = _numbering(text)
    if not markers:
        pieces = [text]
    else:
        ends = [*(marker.start for marker in markers[1:]), len(text)]
        pieces = [text[marker.end : end] for marker, end in zip(markers, ends, strict=True)]
        if preamble := text[: markers[0].start].strip():
            pieces[0] = f"{preamble} {pieces[0].strip()}"
    return tuple(piece.strip() for piece in pieces if piece.strip())


def strip_numbering(text: str) -> str:
    """`text` without the markers that `parse_statements` recognises; all else stays as it is."""
    kept, position = [], 0
    for marker in _numbering(text):
        kept.append(text[position : marker.start])
        position = marker.end
    return "".join((*kept, text[position:]))


def number_statements(statements: Sequence[str], style: Style = "1. ") -> str:
    """Writes statements as a numbered list, one item per line: the inverse of `parse_statements`.

    The inverse holds for up to 999 statements that are not blank, have no outer white space and
    hold nothing that reads as a marker themselves.
    """
    items = (_FORMAT[style].format(n) + item for n, item in enumerate(statements, start=1))
    return "\n".join(items)


def _numbering(text: str) -> list[_Marker]:
    """The markers that number `text`, in order; empty where it is not numbered."""
    by_style: dict[Style, list[_Marker]] = collections.defaultdict(list)
    for marker in _markers(text):
        by_style[marker.style].append(marker)
    for run_of in (_run_of_lines, functools.partial(_run_in_flow, text)):
        runs = [run for markers in by_style.values() if (run := run_of(markers))]
        runs = [run for run in runs if len(run) > 1 or run[0].opens_text]
        first = min(runs, key=lambda run: run[0].start, default=[])
        if len(first) > 1:
            return first
    return first


def _markers(text: str) -> Iterator[_Marker]:
    for match in _MARKER.finditer(text):
        start, end = match.span()
        before = text[:start].rstrip()
        indent = start - (text.rfind("\n", 0, start) + 1)
        yield _Marker(
            style="(1) " if match[3] else "1) " if match[2] == ")" else "1. ",
            number=int(match[1] or match[3]),
            start=start,
            end=end,
            indent=None if text[start - indent : start].strip() else indent,
            opens_sentence=before.rstrip(_CLOSERS)[-1:] in _SENTENCE_ENDS,  # "" is in every str
            opens_text=not before,
        )


def _run_of_lines(markers: list[_Marker]) -> list[_Marker]:
    run: list[_Marker] = []
    nested_at = None  # indent of a nested list that is open
    for marker in markers:
        if marker.indent is None or (nested_at is not None and marker.indent >= nested_at):
            continue
        nested_at = None
        if marker.number == len(run) + 1:
            run.append(marker)
        elif run and marker.number == 1 and marker.indent > run[-1].indent:
            nested_at = marker.indent
    return run


def _run_in_flow(text: str, markers: list[_Marker]) -> list[_Marker]:
    run: list[_Marker] = []
    for marker in markers:
        if marker.number != len(run) + 1:
            continue
        if marker.opens_sentence or (
            run
            and marker.style != "1. "
            and text.count("(", run[-1].end, marker.start)
            <= text.count(")", run[-1].end, marker.start)
        ):
            run.append(marker)
    return run
