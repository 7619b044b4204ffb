"""Terminal text of a bridge: one table per stage for the verdicts, one for the models."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcr_jax.bridge.figures import METRIC
from mcr_jax.errors import printable


def table(found: Mapping[str, Any]) -> Group:
    """Lays out what `figures.bridge` returns for a terminal."""
    first, second = found["judges"]
    names = Text(printable(f"First judge: {first}. Second judge: {second}."))
    parts: list[RenderableType] = [names, *_lines_of_judges(found)]
    for stage, of_stage in found["stages"].items():
        parts += _stage(stage, METRIC[stage], of_stage)
    confidence = f"{100 * found['config']['confidence']:g} %"
    notes = (
        f"[{confidence} intervals], resampling cases. Estimated: under the first "
        "judge, from the second's verdicts and the table above it, which is assumed to hold for "
        f"every model. {found['notice']}."
    )
    return Group(*parts, Text(notes, style="table.caption"))


def _lines_of_judges(found: Mapping[str, Any]) -> Iterator[Text]:
    """Yields what verdicts are of several model versions, or majorities of repeats."""
    for judge, by_stage in found["versions"].items():
        for stage, versions in by_stage.items():
            if len(versions) > 1:
                listed = ", ".join(f"{name} ({count})" for name, count in versions.items())
                line = f"The {stage} verdicts of {judge} are from several versions: {listed}."
                yield Text(printable(line))
    for judge, by_stage in found["repeats"].items():
        if most := sorted({int(n) for counted in by_stage.values() for n in counted} - {1}):
            repeats = " and of ".join(map(str, most))
            yield Text(printable(f"Verdicts of {judge} are majorities of {repeats} repeats."))


def _stage(stage: str, metric: str, of_stage: Mapping[str, Any]) -> Iterator[RenderableType]:
    whole = of_stage["all"]
    yield Text(f"\n{stage}: {whole['items']} verdicts of both, {whole['cases']} cases", "bold")
    cells = whole["confusion"]
    counts = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
    for head in ("", "second: yes", "second: no"):
        counts.add_column(head, justify="right" if head else "left")
    counts.add_row("first: yes", str(cells["both"]), str(cells["first_only"]))
    counts.add_row("first: no", str(cells["second_only"]), str(cells["neither"]))
    yield counts
    again = " and ".join(map(_percent, whole["repeats"]))
    yes = " and ".join(map(_percent, whole["prevalence"]))
    lines = [f"{name} {_cell(whole[key])}" for key, name in _NAMED.items()]
    yield Text(
        f"{'; '.join(lines)}.\nYes: {yes} of verdicts. The second judge repeats {again} of the "
        "first's yes and no."
    )
    models = Table(box=box.HORIZONTALS, show_lines=True, pad_edge=False, show_edge=False)
    heads = (metric, "first", "second", "second − first", "estimated")
    for head in heads:
        models.add_column(head, no_wrap=True)
    for name, model in of_stage["models"].items():
        compared = model["difference"]
        value = {**compared, "value": compared["difference"]}
        judged = map(_lines, model["judged"])
        models.add_row(
            escape(printable(name)), *judged, _lines(value, "+"), _lines(model["estimated"])
        )
    yield models
    for pair in of_stage["comparisons"]:
        under = pair["second"]
        if under["difference"] is not None:
            value = {**under, "value": under["difference"]}
            line = f"{pair['b']} − {pair['a']}: {_cell(value, '+')} under the second judge"
            line += f", corrected to the first {_cell(pair['corrected'], '+')}"
            yield Text(printable(line))


_NAMED = {"agreement": "agreement", "kappa": "kappa", "ac1": "AC1"}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _cell(figure: Mapping[str, Any], sign: str = "") -> str:
    return _lines(figure, sign).replace("\n", " ")


def _lines(figure: Mapping[str, Any], sign: str = "") -> str:
    """Formats a value and, below it, its interval; an en dash for what is undefined."""
    if figure["value"] is None:
        return "–"
    shown = f"{figure['value']:{sign}.3f}"
    if figure["low"] is None:
        return shown
    return f"{shown}\n[{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
