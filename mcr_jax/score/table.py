"""Terminal table of results.json: models side by side, with intervals and coverage."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcr_jax.metrics import HEADLINE, METRICS, of_model


def table(results: Mapping[str, Any]) -> Group:
    """Lays out results.json for a terminal.

    Args:
      results: schema 1.

    Returns:
      A title, a table and notes. The table has a row per metric, a column per model and two columns
      per pair of consecutive models. A model's cell holds value and interval and, if cases are
      unresolved, coverage and bounds; a pair's cells hold the paired difference with its interval,
      and the p-value. The notes list outcomes of completions, rules that read the answers, and
      verdicts that do not count. Two models fit into 80 columns.
    """
    models = {name: of_model(model) for name, model in results["models"].items()}
    compared = {(c["a"], c["b"], c["metric"]): c for c in results["comparisons"]}
    pairs = list(dict.fromkeys((a, b) for a, b, _ in compared))
    ended = [
        f"Completions of {name}: "
        + ", ".join(f"{count} {kind}" for kind, count in model["outcomes"].items())
        for name, model in results["models"].items()
    ]
    for name, model in results["models"].items():
        if rules := model.get("answers"):
            read = ", ".join(f"{count} {rule}" for rule, count in rules.items())
            ended.append(f"Answers of {name}, by the rule that read them: {read}")
    if note := results["judge"].get("note"):
        ended.append(f"Verdicts: {note}.")
    for name, judge in results.get("judges", {}).items():
        ended.append(f"Judge {name}: {_other_judge(judge, results['judge']['name'])}.")
    for stage, share in results["judge"].get("repeatability", {}).items():
        if share["value"] is not None:
            ended.append(f"Same {stage} verdict in every repeat: {share['value']:.3f}.")
    if pairs:
        ended.insert(0, "Differences are paired by case; p unadjusted.")
    name = results["config"]["name"] or "results"
    confidence = f"{100 * results['config']['confidence']:g} %"
    # A title or caption of the table would wrap at its width, which is small for one model.
    title = Text(f"{name}: mean over cases [{confidence} interval]", style="table.title")
    notes = Text("\n".join((*ended, f"{results['notice']}.")), style="table.caption")
    shown = Table(box=box.HORIZONTALS, show_lines=True, pad_edge=False, show_edge=False)
    shown.add_column("metric", no_wrap=True)
    for name in models:
        shown.add_column(escape(name), no_wrap=True)
    for a, b in pairs:
        shown.add_column(escape(f"{b} − {a}"), no_wrap=True)
        shown.add_column("p", no_wrap=True, justify="right")
    for metric in METRICS:
        values = [found.get(metric.name) for found in models.values()]
        if any(values):
            cells = [_metric(value) for value in values]
            for pair in pairs:
                cells += _comparison(compared.get((*pair, metric.name)))
            shown.add_row(metric.short, *cells)
    return Group(title, shown, notes)


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
