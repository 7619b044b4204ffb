"""Finds a judge's quotes in a trace, and makes hidden characters of untrusted text visible."""

import collections
import itertools
import re
from collections.abc import Sequence

from mcr_jax.quotes import find

# Controls and the characters that reorder text on the screen; tab and newline are left alone.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` with controls and direction marks written out, as in ⟨U+202E⟩."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def segments(trace: str, evidence: Sequence[Sequence[str]]) -> list[tuple[str, list[int]]]:
    """Cuts a trace where the evidence begins and ends.

    Args:
      trace: the reasoning.
      evidence: what the judge quoted for each statement, in order; what is not in the trace is
        passed over.

    Returns:
      Pieces that together are the trace, each with the numbers (from 1) of the statements it
      is evidence for.
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
    pieces, here = [], collections.Counter()  # how many spans of each statement are open
    for a, b in itertools.pairwise(sorted({0, len(trace), *begins, *ends})):
        here.update(begins[a])
        here.subtract(ends[a])
        pieces.append((trace[a:b], sorted(statement for statement in here if here[statement] > 0)))
    return pieces
