"""Terminal table of a comparison: one row per pair of models and metric."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcr_jax.errors import printable
from mcr_jax.metrics import METRICS
from mcr_jax.score.layout import p_text

_SHORT = {metric.name: metric.short for metric in METRICS}


def table(found: Mapping[str, Any]) -> Group:
    """Lays out what `pairs.numbers` returns for a terminal."""
    shown = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
    shown.add_column("b − a", overflow="fold")
    for head in ("metric", "difference", "p", "Holm", "cases"):
        left = "left" if head in ("metric", "difference") else "right"
        shown.add_column(head, no_wrap=True, justify=left)
    for entry in found["comparisons"]:
        cells = ["–", "–", "–"]
        if entry["difference"] is not None:
            low, high = entry["low"], entry["high"]
            cells = [
                f"{entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                p_text(entry["p_value"]),
                p_text(entry["p_holm"]),
            ]
        pair = escape(printable(f"{entry['b']} − {entry['a']}"))
        shown.add_row(pair, _SHORT[entry["metric"]], *cells, str(entry["cases"]))
    confidence = f"{100 * found['config']['confidence']:g} %"
    title = Text(f"{found['cases']} common cases [{confidence} interval]", style="table.title")
    notes = f"Differences are paired by case; Holm's correction is over {found['tests']} tests."
    return Group(title, shown, Text(f"{notes}\n{found['notice']}.", style="table.caption"))
