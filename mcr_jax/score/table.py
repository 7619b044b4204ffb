"""Terminal table of results.json: models side by side, with intervals and coverage."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from mcr_jax.errors import for_terminal, printable
from mcr_jax.generate import spending
from mcr_jax.metrics import HEADLINE, METRICS, Metric, of_model
from mcr_jax.score.layout import Wide, difference, figure, p_text, pair

_SIDE_BY_SIDE = 2  # models

Values = Mapping[str, Mapping[str, Mapping[str, Any]]]  # model to metric to METRIC
Compared = Mapping[tuple[str, str, str], Mapping[str, Any]]  # (a, b, metric) to comparison


def table(results: Mapping[str, Any]) -> Group:
    """Lays out results.json for a terminal of any width.

    Args:
      results: schema 1.

    Returns:
      A title with the headline judge, tables and notes. A model has value and interval per metric
      and, if cases are unresolved, coverage and bounds. A pair of consecutive models has the paired
      difference with its interval, and the p-value. Up to `_SIDE_BY_SIDE` models are columns, with
      their difference beside them; more models are rows, with the differences in a table below. The
      notes list outcomes of completions, rules that read the answers, the cost, and verdicts that
      do not count.
    """
    models = {name: of_model(model) for name, model in results["models"].items()}
    compared = {(c["a"], c["b"], c["metric"]): c for c in results["comparisons"]}
    name = results["config"]["name"] or "results"
    confidence = f"{100 * results['config']['confidence']:g} %"
    title = f"{name}: mean over cases [{confidence} interval], judge {results['judge']['name']}"
    notes = for_terminal("\n".join(_notes(results)))
    layout = _columns if len(models) <= _SIDE_BY_SIDE else _rows
    return Group(
        # A title or caption of the table would wrap at its width, which is small for one model.
        Text(printable(title), style="table.title"),
        *layout(models, compared),
        Text(notes, style="table.caption"),
    )


def of_models(models: Values) -> Wide:
    """Returns a table with a row per model and a column per metric that any of them has."""
    metrics = _metrics(models)
    rows = [(n, [_metric(of.get(m.name)) for m in metrics]) for n, of in models.items()]
    return Wide("model", [metric.short for metric in metrics], rows)


def _columns(models: Values, compared: Compared) -> list[Wide]:
    """Returns one table with a row per metric."""
    pairs = _pairs(compared)
    rows = [
        (
            metric.short,
            [_metric(found.get(metric.name)) for found in models.values()]
            + [_comparison(compared.get((*names, metric.name))) for names in pairs],
        )
        for metric in _metrics(models)
    ]
    return [Wide("metric", [*models, *pairs.values()], rows)]


def _rows(models: Values, compared: Compared) -> list[Wide | Text]:
    """Returns a table with a row per model, and one with a row per pair."""
    metrics = [metric for metric in _metrics(models) if metric.compared]
    rows = [
        (name, [_comparison(compared.get((*names, metric.name))) for metric in metrics])
        for names, name in _pairs(compared).items()
    ]
    below = [Text(""), Wide("difference", [m.short for m in metrics], rows)] if rows else []
    return [of_models(models), *below]


def _metrics(models: Values) -> list[Metric]:
    return [m for m in METRICS if any(m.name in found for found in models.values())]


def _pairs(compared: Compared) -> dict[tuple[str, str], str]:
    """Returns names of the compared pairs, by (a, b)."""
    return {(entry["a"], entry["b"]): pair(entry) for entry in compared.values()}


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = []
    if results["comparisons"]:
        notes = ["Differences are paired by case; p unadjusted."]
        if len(results["models"]) > _SIDE_BY_SIDE:
            notes = [f"{notes[0]} Pairs are of neighbours in the list: `mcr compare` has all."]
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
        lines = [figure(metric)]
    if metric["worst"] < metric["best"]:
        lines.append(f"{metric['resolved']} of {metric['total']} cases")
        lines.append(f"{metric['worst']:.2f}–{metric['best']:.2f} if all")
    return "\n".join(lines)


def _comparison(entry: Mapping[str, Any] | None) -> str:
    shown = difference(entry)
    return shown if shown == "–" else f"{shown}\np {p_text(entry['p_value'])}"
