"""Terminal text of a comparison: the models, then a table per pair with a row per metric."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from mcr_jax.compare.chosen import JUDGE, by_value
from mcr_jax.errors import printable
from mcr_jax.metrics import METRICS
from mcr_jax.score.layout import Wide, difference, p_text, pair
from mcr_jax.score.table import of_models

_SHORT = {metric.name: metric.short for metric in METRICS}


def table(found: Mapping[str, Any]) -> Group:
    """Lays out what `pairs.numbers` returns for a terminal of any width."""
    confidence = f"{100 * found['config']['confidence']:g} %"
    title = f"{found['cases']} common cases [{confidence} interval], judge {_judges(found)}"
    notes = f"Differences are paired by case; Holm's correction is over {found['tests']} tests."
    return Group(
        Text(printable(title), style="table.title"),
        of_models({label: model["metrics"] for label, model in found["models"].items()}),
        *_differences(found["comparisons"]),
        Text(f"{notes}\n{found['notice']}.", style="table.caption"),
    )


def _judges(found: Mapping[str, Any]) -> str:
    labels = list(found["models"])
    names = by_value([found["models"][label]["facts"][JUDGE] for label in labels], labels)
    if len(names) == 1:
        return next(iter(names))
    return " and ".join(f"{name} ({', '.join(of_name)})" for name, of_name in names.items())


def _differences(comparisons: Iterable[Mapping[str, Any]]) -> Iterator[Text | Wide]:
    """Yields a name and a table per pair: a column of names would leave no room for long ones."""
    for name, entries in itertools.groupby(comparisons, pair):
        yield Text(f"\n{printable(name)}", style="bold")
        rows = [(_SHORT[entry["metric"]], _cells(entry)) for entry in entries]
        yield Wide(
            "metric", ("difference", "p".rjust(6), "Holm".rjust(6), "cases"), rows, ruled=False
        )


def _cells(entry: Mapping[str, Any]) -> list[str]:
    p_values = ["–", "–"]
    if entry["difference"] is not None:
        p_values = [p_text(entry[name]) for name in ("p_value", "p_holm")]
    value = difference(entry).replace("\n", " ", 1)
    return [value, *(p_value.rjust(6) for p_value in p_values), str(entry["cases"]).rjust(5)]
