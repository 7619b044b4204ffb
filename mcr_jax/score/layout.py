"""Tables for a terminal of any width: a table that is too wide continues below itself.

`rich` crops what does not fit. A pipe has no width of its own, so nothing here relies on one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcr_jax.errors import for_terminal

_GAP = 3  # columns of the terminal between two columns of a table
_NAME = 20  # width that a long name has at least
_HEAD = 16  # width up to which a word of a heading is kept on one line


@dataclasses.dataclass(frozen=True)
class Wide:
    """A table with a name and cells in each row; further columns go into tables below it.

    Attributes:
      head: heading of the names.
      heads: headings of the cells.
      rows: name and cells of each row; a cell may have several lines.
      ruled: whether there is a line between two rows.
    """

    head: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    ruled: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields tables that together hold every column, none wider than the console."""
        longest = max(_width(name) for name in (self.head, *(name for name, _ in self.rows)))
        widths = [
            max([_of_head(head), *(_width(cells[at]) for _, cells in self.rows)])
            for at, head in enumerate(self.heads)
        ]
        for band in _bands(widths, options.max_width - min(longest, _NAME)):
            if band.start:
                yield Text("")
            left = options.max_width - sum(widths[at] + _GAP for at in band)
            yield self._table(band, widths, max(1, min(longest, left)))

    def _table(self, band: range, widths: Sequence[int], name_width: int) -> Table:
        shown = Table(box=box.HORIZONTALS, show_lines=self.ruled, pad_edge=False, show_edge=False)
        shown.add_column(_safe(self.head), overflow="fold", width=name_width)
        for at in band:
            shown.add_column(_safe(self.heads[at]), overflow="fold", width=widths[at])
        for name, cells in self.rows:
            shown.add_row(_safe(name), *(_safe(cells[at]) for at in band))
        return shown


def _bands(widths: Sequence[int], room: int) -> list[range]:
    """Splits columns into runs that fit into `room`, at least one column each."""
    starts, used = [0], 0
    for at, width in enumerate(widths):
        used += width + _GAP
        if used > room and at > starts[-1]:
            starts.append(at)
            used = width + _GAP
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(widths)], strict=True)]


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _of_head(head: str) -> int:
    return min(_HEAD, max(map(cell_len, head.split())))


def _safe(text: str) -> str:
    return escape(for_terminal(text))


def figure(found: Mapping[str, Any], sign: str = "") -> str:
    """Formats "value" and, on a second line, its interval; an en dash for what is undefined.

    Args:
      found: "value", and "low" and "high" unless the value is None.
      sign: "+" for a difference.
    """
    if found["value"] is None:
        return "–"
    shown = f"{found['value']:{sign}.3f}"
    if found["low"] is None:
        return shown
    return f"{shown}\n[{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def difference(entry: Mapping[str, Any] | None) -> str:
    """Formats a paired difference as `figure` does, with a line for models equal in all cases."""
    if entry is None or entry["difference"] is None:
        return "–"
    shown = figure({**entry, "value": entry["difference"]}, "+")
    return "\n".join(filter(None, (shown, equal(entry))))


def equal(entry: Mapping[str, Any]) -> str:
    """Returns "equal in all N cases" if no case differs, else ""."""
    cases = entry["cases"]
    if not cases or entry.get("equal") != cases:
        return ""
    return f"equal in all {cases} cases" if cases > 1 else "equal in the only case"


def pair(entry: Mapping[str, Any]) -> str:
    """Names a difference: "b − a"."""
    return f"{entry['b']} − {entry['a']}"


def p_text(p_value: float) -> str:
    """Formats a p-value: three decimals, or "<0.001"."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
