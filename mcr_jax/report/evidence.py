"""Finds a judge's quotes in a trace, and makes hidden characters of untrusted text visible."""

import collections
import itertools
import re
from collections.abc import Sequence

from mcr_jax.quotes import find

# Invisible characters and those that change how others show: the ranges with the property
# Default_Ignorable_Code_Point in Unicode 14.0 (DerivedCoreProperties.txt,
# https://www.unicode.org/Public/14.0.0/ucd/). Joiners and variation selectors in emoji and Indic
# words are among them: the reader sees every character.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and newline
# Line and paragraph separators, annotation marks, and lone surrogates, which no file can hold.
_OTHERS = "\u2028\u2029\ufff9-\ufffb\ud800-\udfff"
_HIDDEN = re.compile(f"[{_CONTROLS}{_IGNORABLE}{_OTHERS}]")


def visible(text: str) -> str:
    """Writes out every control and every invisible character of `text`, as in ⟨U+202E⟩.

    Tab and newline stay; CR and CR LF become newlines.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def segments(trace: str, evidence: Sequence[Sequence[str]]) -> list[tuple[str, list[int]]]:
    """Cuts a trace at the borders of the evidence.

    Args:
      trace: the reasoning.
      evidence: the judge's quotes for each statement, in order; quotes that are not in the trace
        are ignored.

    Returns:
      Pieces that join to the trace, each with the numbers (from 1) of the statements that it
      supports.
    """
    if not any(evidence):
        return [(trace, [])] if trace else []
    spans = [
        (start, end, statement)
        for statement, of_statement in enumerate(evidence, start=1)
        for quote in of_statement
        for start, end in find(quote, trace)
    ]
    begins, ends = collections.defaultdict(list), collections.defaultdict(list)
    for start, end, statement in spans:
        begins[start].append(statement)
        ends[end].append(statement)
    pieces, here = [], collections.Counter()  # open spans by statement
    for a, b in itertools.pairwise(sorted({0, len(trace), *begins, *ends})):
        here.update(begins[a])
        here.subtract(ends[a])
        pieces.append((trace[a:b], sorted(statement for statement in here if here[statement] > 0)))
    return pieces
