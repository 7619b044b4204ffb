"""Terminal table of results.json: models side by side, with intervals and coverage."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcr_jax.generate import spending
from mcr_jax.metrics import HEADLINE, METRICS, Metric, of_model

_SIDE_BY_SIDE = 2  # models
_INTERVAL_CHARS = len("[0.000, 0.000]")

Pair = tuple[str, str]
Values = Mapping[str, Mapping[str, Mapping[str, Any]]]  # model to metric to METRIC
Compared = Mapping[tuple[str, str, str], Mapping[str, Any]]  # (a, b, metric) to comparison


def table(results: Mapping[str, Any]) -> Group:
    """Lays out results.json for a terminal.

    Args:
      results: schema 1.

    Returns:
      A title, tables and notes. A model has value and interval per metric and, if cases are
      unresolved, coverage and bounds. A pair of consecutive models has the paired difference with
      its interval, and the p-value. Up to `_SIDE_BY_SIDE` models are columns, with their difference
      beside them; more models are rows, with the differences in a table below. The notes list
      outcomes of completions, rules that read the answers, the cost, and verdicts that do not
      count. Two models fit into 80 columns.
    """
    models = {name: of_model(model) for name, model in results["models"].items()}
    compared = {(c["a"], c["b"], c["metric"]): c for c in results["comparisons"]}
    pairs = list(dict.fromkeys((a, b) for a, b, _ in compared))
    name = results["config"]["name"] or "results"
    confidence = f"{100 * results['config']['confidence']:g} %"
    # A title or caption of the table would wrap at its width, which is small for one model.
    title = Text(f"{name}: mean over cases [{confidence} interval]", style="table.title")
    notes = Text("\n".join(_notes(results, bool(pairs))), style="table.caption")
    metrics = [m for m in METRICS if any(m.name in found for found in models.values())]
    layout = _columns if len(models) <= _SIDE_BY_SIDE else _rows
    return Group(title, *layout(metrics, models, pairs, compared), notes)


def _columns(
    metrics: Sequence[Metric], models: Values, pairs: Sequence[Pair], compared: Compared
) -> list[Table]:
    """Returns one table with a row per metric."""
    names = [*models, *(f"{b} − {a}\np" for a, b in pairs)]
    shown = _table("metric", [part for name in names for part in name.split("\n")])
    for metric in metrics:
        cells = [_metric(found.get(metric.name)) for found in models.values()]
        for pair in pairs:
            cells += _comparison(compared.get((*pair, metric.name)))
        shown.add_row(metric.short, *cells)
    return [shown]


def _rows(
    metrics: Sequence[Metric], models: Values, pairs: Sequence[Pair], compared: Compared
) -> list[Table | Text]:
    """Returns a table with a row per model, and one with a row per pair."""
    shown = _table("model", [metric.short for metric in metrics])
    for name, found in models.items():
        shown.add_row(escape(name), *(_metric(found.get(metric.name)) for metric in metrics))
    metrics = [metric for metric in metrics if metric.compared]
    differences = _table("difference", [metric.short for metric in metrics])
    for a, b in pairs:
        cells = [_comparison(compared.get((a, b, metric.name))) for metric in metrics]
        differences.add_row(
            escape(f"{b} − {a}"), *(f"{text}\np {p}" if p != "–" else "–" for text, p in cells)
        )
    return [shown, Text(""), differences] if pairs else [shown]


def _table(first: str, names: Sequence[str]) -> Table:
    shown = Table(box=box.HORIZONTALS, show_lines=True, pad_edge=False, show_edge=False)
    shown.add_column(first, overflow="fold")
    for name in names:
        if name == "p":
            shown.add_column(name, no_wrap=True, justify="right")
        else:  # as wide as an interval; a long name takes several lines
            shown.add_column(escape(name), overflow="fold", min_width=_INTERVAL_CHARS)
    return shown


def _notes(results: Mapping[str, Any], paired: bool) -> list[str]:
    notes = ["Differences are paired by case; p unadjusted."] if paired else []
    for name, model in results["models"].items():
        counts = ", ".join(f"{count} {kind}" for kind, count in model["outcomes"].items())
        notes.append(f"Completions of {name}: {counts}")
    for name, model in results["models"].items():
        if rules := model.get("answers"):
            read = ", ".join(f"{count} {rule}" for rule, count in rules.items())
            notes.append(f"Answers of {name}, by the rule that read them: {read}")
    if cost := spending.sentence(results):
        notes.append(cost)
    if note := results["judge"].get("note"):
        notes.append(f"Verdicts: {note}.")
    for name, judge in results.get("judges", {}).items():
        notes.append(f"Judge {name}: {_other_judge(judge, results['judge']['name'])}.")
    for stage, share in results["judge"].get("repeatability", {}).items():
        if share["value"] is not None:
            notes.append(f"Same {stage} verdict in every repeat: {share['value']:.3f}.")
    return [*notes, f"{results['notice']}."]


def _other_judge(judge: Mapping[str, Any], first: str) -> str:
    """Returns values and agreement of a further judge in words."""
    values = [
        f"{HEADLINE} {found['value']:.3f} for {name}"
        for name, model in judge["models"].items()
        if (found := of_model(model)[HEADLINE])["value"] is not None
    ]
    agreed = judge["agreement"]["diagnosis"]
    if agreed["raw"]["value"] is not None:
        figures = {"agreement": agreed["raw"], "kappa": agreed["kappa"], "AC1": agreed["ac1"]}
        listed = ", ".join(
            f"{word} {found['value']:.3f}"
            for word, found in figures.items()
            if found["value"] is not None
        )
        values.append(f"with {first} on {agreed['n']} diagnoses: {listed}")
    return "; ".join(values) or "unresolved"


def _metric(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "–"
    lines = ["unresolved"]
    if metric["value"] is not None:
        # rich takes "[0.1" for text, not markup: a tag never starts with a digit or a sign
        lines = [f"{metric['value']:.3f}", f"[{metric['low']:.3f}, {metric['high']:.3f}]"]
    if metric["worst"] < metric["best"]:
        lines.append(f"{metric['resolved']} of {metric['total']} cases")
        lines.append(f"{metric['worst']:.2f}–{metric['best']:.2f} if all")
    return "\n".join(lines)


def _comparison(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if entry is None or entry["difference"] is None:
        return "–", "–"
    text = f"{entry['difference']:+.3f}\n[{entry['low']:+.3f}, {entry['high']:+.3f}]"
    return text, p_text(entry["p_value"])


def p_text(p_value: float) -> str:
    """Formats a p-value: three decimals, or "<0.001"."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
