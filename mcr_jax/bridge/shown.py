"""Terminal text of a bridge: per stage the verdicts, the models, and their differences."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mcr_jax.bridge.figures import METRIC
from mcr_jax.bridge.rates import RATES
from mcr_jax.errors import printable
from mcr_jax.score.layout import Wide, difference, figure, p_text, pair

_NAMED = {"agreement": "agreement", "kappa": "kappa", "ac1": "AC1"}
_RATES = {"q1": "q₁", "q0": "q₀"}
_CLIPPED = "*"


def table(found: Mapping[str, Any]) -> Group:
    """Lays out what `figures.bridge` returns for a terminal of any width."""
    first, second = found["judges"]
    parts: list[RenderableType] = [_line(f"First judge: {first}. Second judge: {second}.")]
    parts += map(_line, _lines_of_judges(found))
    alpha = 1.0 - found["config"]["confidence"]
    for stage, of_stage in found["stages"].items():
        parts += _stage(stage, METRIC[stage], of_stage, alpha)
    confidence = f"{100 * found['config']['confidence']:g} %"
    notes = [
        f"[{confidence} intervals], resampling cases. Estimated: under the first judge, from the "
        "second's verdicts and the table above it. q₁ and q₀: how often the second judge repeats a "
        "yes and a no of the first; the estimate assumes that they are the same for every model."
    ]
    stages = found["stages"].values()
    if any(model["clipped"] for of_stage in stages for model in of_stage["models"].values()):
        notes.append(
            f"{_CLIPPED} The estimate or its interval went beyond what is possible (below 0, or "
            "above the share of completions that a judge decides on) and is clipped. Corrected "
            "differences are not clipped, so they may differ from the difference of two estimates."
        )
    return Group(*parts, Text("\n".join([*notes, f"{found['notice']}."]), style="table.caption"))


def _line(text: str) -> Text:
    return Text(printable(text))


def _lines_of_judges(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what verdicts are of several model versions, or majorities of repeats."""
    for judge, by_stage in found["versions"].items():
        for stage, versions in by_stage.items():
            if len(versions) > 1:
                listed = ", ".join(f"{name} ({count})" for name, count in versions.items())
                yield f"The {stage} verdicts of {judge} are from several versions: {listed}."
    for judge, by_stage in found["repeats"].items():
        if most := sorted({int(n) for counted in by_stage.values() for n in counted} - {1}):
            repeats = " and of ".join(map(str, most))
            yield f"Verdicts of {judge} are majorities of {repeats} repeats."


def _stage(
    stage: str, metric: str, of_stage: Mapping[str, Any], alpha: float
) -> Iterator[RenderableType]:
    whole = of_stage["all"]
    yield Text("")
    yield Text(f"{stage}: {whole['items']} verdicts of both, {whole['cases']} cases", "bold")
    cells = whole["confusion"]
    counts = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
    for head in ("", "second: yes", "second: no"):
        counts.add_column(head, justify="right" if head else "left", overflow="fold")
    counts.add_row("first: yes", str(cells["both"]), str(cells["first_only"]))
    counts.add_row("first: no", str(cells["second_only"]), str(cells["neither"]))
    yield counts
    again = " and ".join(map(_percent, whole["repeats"]))
    yes = " and ".join(map(_percent, whole["prevalence"]))
    lines = [f"{name} {figure(whole[key])}".replace("\n", " ") for key, name in _NAMED.items()]
    yield Text(
        f"{'; '.join(lines)}.\nYes: {yes} of verdicts. The second judge repeats {again} of the "
        "first's yes and no."
    )
    yield Text("")
    heads = ("first", "second", "second − first", "estimated", *_RATES.values())
    yield Wide(metric, heads, [(n, _model(model)) for n, model in of_stage["models"].items()])
    if of_stage["comparisons"]:
        yield Text("")
        yield _differences(of_stage)
    yield from map(_line, _lines_of_rates(of_stage, alpha))


def _model(model: Mapping[str, Any]) -> list[str]:
    mark = _CLIPPED if model["clipped"] else ""
    value, *rest = figure(model["estimated"]).split("\n")
    confusion = list(model["confusion"].values())
    rates = [
        f"{figure({'value': rate, 'low': None})}\nof {sum(confusion[at] for at in places)}"
        for rate, places in zip(model["repeats"], RATES.values(), strict=True)
    ]
    return [
        *map(figure, model["judged"]),
        # As narrow as an interval, so that the estimate stays beside it in 80 columns.
        difference(model["difference"]).replace("equal in all ", "equal in all\n"),
        "\n".join([f"{value}{mark}", *rest]),
        *rates,
    ]


def _differences(of_stage: Mapping[str, Any]) -> Wide:
    """Returns the differences of every two models; the first judge's where it judged both."""
    rows = [
        (
            pair(entry),
            [
                difference(entry["first"]),
                difference(entry["second"]),
                figure(entry["corrected"], "+"),
            ],
        )
        for entry in of_stage["comparisons"]
        if entry["second"]["difference"] is not None
    ]
    return Wide("difference", ("first", "second", "corrected"), rows)


def _lines_of_rates(of_stage: Mapping[str, Any], alpha: float) -> Iterator[str]:
    """Yields what speaks against the same rates for every model, or that nothing can."""
    models, clear = of_stage["models"], []
    for entry in of_stage["comparisons"]:
        for place, (key, name) in enumerate(_RATES.items()):
            p_value = entry["rates"][key]["p_holm"]
            if p_value is not None and p_value < alpha:
                a, b = (
                    f"{models[m]['repeats'][place]:.3f} ({m})" for m in (entry["a"], entry["b"])
                )
                clear.append(f"{name} is {a} and {b}, p {p_text(p_value)}")
    if clear:
        yield (
            f"Warning: {'; '.join(clear)} (Holm). The second judge errs more often on one of these "
            "models than on the other, so their estimates and corrected differences are biased: "
            "rely on the first judge's own verdicts."
        )
    judged = [model for model, found in models.items() if found["items"]]
    if len(judged) == 1 < len(models):
        yield (
            f"Both judges judged {judged[0]} only: whether its q₁ and q₀ hold for the other models "
            "is not tested."
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
