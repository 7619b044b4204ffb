"""The charts of the page, each a function from numbers to inline SVG."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mcr_jax.report import svg

_LOSS_POINTS = 300  # a longer curve is shown as means of so many stretches
_BINS = 10


def percent(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _tick(value: float) -> str:
    return f"{100 * value:.0f} %"


def key(series: int) -> Markup:
    """The sign of a model, for legends and table heads."""
    root = svg.Element("svg", {"viewBox": "-8 -8 16 16", "class": "key", "aria-hidden": "true"})
    svg.sign(root, 0.0, 0.0, series)
    return svg.markup(root)


def accuracy(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Markup:
    """accuracy@k against k.

    Args:
      models: model name to k to METRIC, as in results.json.
    """
    ks = sorted({k for of_model in models.values() for k in of_model}, key=int)
    plot = svg.Plot("Accuracy at k per model, with intervals", (-0.5, len(ks) - 0.5), (0.0, 1.0))
    plot.y_axis("cases right", [0, 0.25, 0.5, 0.75, 1], _tick)
    plot.x_axis("samples drawn, any of them right (k)", range(len(ks)), lambda i: ks[int(i)])
    for series, (name, of_model) in enumerate(models.items()):
        shift = (series - (len(models) - 1) / 2) * min(0.24, 0.7 / len(models))
        shown = [(i + shift, k, of_model[k]) for i, k in enumerate(ks) if k in of_model]
        shown = [entry for entry in shown if entry[2]["value"] is not None]
        if len(shown) > 1:
            plot.path([(x, metric["value"]) for x, _, metric in shown], f"join s{series % 4}")
        for at, k, metric in shown:
            x, y = plot.x(at), plot.y(metric["value"])
            low, high = plot.y(metric["low"]), plot.y(metric["high"])
            cls = f"whisker s{series % 4}"
            svg.add(plot.root, "line", cls=cls, x1=x, x2=x, y1=low, y2=high)
            for end in (low, high):
                svg.add(plot.root, "line", cls=cls, x1=x - 4, x2=x + 4, y1=end, y2=end)
            title = (
                f"{name}, accuracy@{k}: {percent(metric['value'])}, "
                f"interval {percent(metric['low'])} to {percent(metric['high'])}"
            )
            plot.mark(x, y, series, title)
            below = series < (len(models) - 1) / 2
            anchor, text_x = ("num end", x - 9) if below else ("num start", x + 9)
            text = f"{100 * metric['value']:.0f}"
            svg.add(plot.root, "text", cls=f"{anchor} s{series % 4}", x=text_x, y=y + 4, text=text)
    return svg.markup(plot.root)


def loss(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Training and validation loss against the step, or None where no loss was logged.

    Args:
      rows: of metrics.jsonl: "step" with "loss" or "val_loss", in nats per token.
    """
    curves = {}
    for field in ("loss", "val_loss"):
        by_step = {row["step"]: row[field] for row in rows if field in row}  # the newest counts
        found = [(s, v) for s, v in sorted(by_step.items()) if v is not None and math.isfinite(v)]
        if found:
            curves[field] = found if field == "val_loss" else _thinned(found)
    if not curves:
        return None
    points = [point for curve in curves.values() for point in curve]
    steps, values = zip(*points, strict=True)
    top, bottom = max(values), min(values)
    pad = 0.06 * (top - bottom) or 0.5
    x_range = (min(0, *steps), max(*steps, 1))
    plot = svg.Plot("Loss against training step", x_range, (bottom - pad, top + pad))
    plot.y_axis("loss, nats per token", svg.ticks(bottom - pad, top + pad))
    plot.x_axis("step", svg.ticks(*x_range))
    if "loss" in curves:
        plot.path(curves["loss"], "curve train")
    if "val_loss" in curves:
        plot.path(curves["val_loss"], "curve val")
        for step, value in curves["val_loss"]:
            title = f"validation, step {step}: {value:.4f}"
            at = {"cx": plot.x(step), "cy": plot.y(value), "r": 4}
            svg.add(plot.root, "circle", title, cls="mark val", **at)
    return svg.markup(plot.root)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    pieces = np.array_split(np.asarray(points, np.float64), min(_LOSS_POINTS, len(points)))
    return [tuple(piece.mean(axis=0).tolist()) for piece in pieces]


def recall_histogram(models: Mapping[str, Sequence[float]]) -> Markup:
    """How many cases have which recall, one row of bars per model on one scale.

    Args:
      models: model name to the recall of each of its resolved cases.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    # recalls are fractions: nudged up so that 3/10 does not fall below its edge by rounding
    counts = {
        name: np.histogram(np.minimum(np.asarray(v, np.float64) + 1e-9, 1), edges)[0]
        for name, v in models.items()
    }
    highest = max(1, *(int(c.max()) for c in counts.values()))
    row, gap = 220 // len(models), 18
    plot = svg.Plot(
        "Distribution of reasoning recall per model",
        (0.0, 1.0),
        (0.0, 1.0),
        height=(row + gap) * len(models) + 50,
    )
    for series, (name, of_model) in enumerate(counts.items()):
        floor = float(plot.top + (row + gap) * series + row)
        scale = (row - 20) / highest
        for value in svg.ticks(0, highest, 3):
            if value == int(value):
                y = floor - value * scale
                svg.add(plot.root, "line", cls="grid", x1=plot.left, x2=plot.right, y1=y, y2=y)
                text = f"{value:g}"
                svg.add(plot.root, "text", cls="num end", x=plot.left - 7, y=y + 4, text=text)
        for i, count in enumerate(of_model):
            x, until = plot.x(edges[i]), plot.x(edges[i + 1])
            cases = "case" if count == 1 else "cases"
            title = (
                f"{name}: {count} {cases} with recall {_tick(edges[i])} to {_tick(edges[i + 1])}"
            )
            box = {"x": x + 1.5, "width": until - x - 3}
            svg.add(
                plot.root,
                "rect",
                title,
                cls=f"bar s{series % 4}",
                **box,
                y=floor - count * scale,
                height=count * scale,
            )
        at = {"x": plot.right - 10, "y": floor - row + 12}
        svg.sign(plot.root, at["x"] + 6, at["y"] - 4, series, size=4.0)
        svg.add(
            plot.root, "text", cls=f"name end s{series % 4}", x=at["x"] - 6, y=at["y"], text=name
        )
    plot.x_axis("recall of a case", [0, 0.2, 0.4, 0.6, 0.8, 1], _tick)
    middle = (plot.top + plot.bottom) / 2
    turned = f"translate(11 {svg.number(middle)}) rotate(-90)"
    svg.add(plot.root, "text", cls="label", transform=turned, text="cases")
    return svg.markup(plot.root)


def recall_accuracy(name: str, series: int, points: Sequence[tuple[float, float]]) -> Markup:
    """Accuracy@1 against recall, a bubble's area saying how many cases lie there.

    Args:
      name: the model's.
      series: its place among the models.
      points: (recall, accuracy@1) of each case resolved for both.
    """
    plot = svg.Plot(f"Accuracy against recall, {name}", (-0.06, 1.06), (-0.08, 1.08), height=270)
    at = [0, 0.25, 0.5, 0.75, 1]
    plot.y_axis("accuracy@1 of a case", at, _tick)
    plot.x_axis("recall of a case", at, _tick)
    counts = collections.Counter((round(x, 6), round(y, 6)) for x, y in points)
    largest = max(counts.values(), default=1)
    for (x, y), count in counts.most_common():
        radius = max(2.6, 11.0 * math.sqrt(count / max(largest, 12)))
        cases = "case" if count == 1 else "cases"
        title = f"{count} {cases}: recall {percent(x)}, accuracy {percent(y)}"
        where = {"cx": plot.x(x), "cy": plot.y(y), "r": radius}
        svg.add(plot.root, "circle", title, cls=f"bubble s{series % 4}", **where)
        if radius >= 7.5:
            svg.add(
                plot.root, "text", cls="count", x=where["cx"], y=where["cy"] + 4, text=str(count)
            )
    return svg.markup(plot.root)


def correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's r, or None where it is not defined: fewer than three points, or no variation."""
    if len(points) < 3:
        return None
    x, y = np.asarray(points, np.float64).T
    if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def range_bar(metric: Mapping[str, Any], series: int) -> Markup:
    """A METRIC on a line from 0 to 1: its interval as a bar, its value as a sign."""
    root = svg.Element("svg", {"viewBox": "0 0 120 12", "class": "range", "aria-hidden": "true"})
    svg.add(root, "line", cls="grid", x1=4, x2=116, y1=6, y2=6)
    if metric["value"] is not None:
        low, high = 4 + 112 * metric["low"], 4 + 112 * metric["high"]
        svg.add(root, "line", cls=f"whisker wide s{series % 4}", x1=low, x2=high, y1=6, y2=6)
        svg.sign(root, 4 + 112 * metric["value"], 6.0, series, size=3.6)
    return svg.markup(root)


def share_bar(share: float, series: int) -> Markup:
    """A share of a whole as a bar."""
    root = svg.Element(
        "svg",
        {"viewBox": "0 0 100 8", "class": "share", "aria-hidden": "true"}
        | {"preserveAspectRatio": "none"},
    )
    svg.add(root, "rect", cls="trough", x=0, y=0, width=100, height=8)
    svg.add(root, "rect", cls=f"bar s{series % 4}", x=0, y=0, width=100.0 * share, height=8)
    return svg.markup(root)
