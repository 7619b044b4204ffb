"""Charts of the page: functions from numbers to inline SVG."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mcr_jax.metrics import Chart
from mcr_jax.report import svg

_LOSS_POINTS = 300  # a longer curve is averaged over this number of stretches
_BINS = 10


def percent(value: float | None) -> str:
    """Formats a share as a percentage; an en dash for None."""
    return "–" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """Formats a difference of shares as percentage points with a sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _tick(value: float) -> str:
    return f"{100 * value:.0f} %"


def key(series: int) -> Markup:
    """Draws the sign of a model for legends and table heads."""
    root = svg.Element("svg", {"viewBox": "-8 -8 16 16", "class": "key", "aria-hidden": "true"})
    svg.sign(root, 0.0, 0.0, series)
    return svg.markup(root)


def of_metrics(
    chart: Chart,
    names: Sequence[str],
    averages: Mapping[str, Mapping[str, Mapping[str, Any]]],
    by_case: Mapping[str, Sequence[Mapping[str, float | None]]],
) -> Markup | None:
    """Draws a chart of metrics; None where it would show nothing that the table does not.

    Args:
      chart: one of `metrics.Metric.chart`.
      names: of the metrics that share it.
      averages: model name to metric name to METRIC, as in results.json.
      by_case: model name to the metrics of each case, as in scores.json.
    """
    if chart.kind == "curve":
        return curve(chart, names, averages)
    values = {
        model: [case.get(n) for case in cases for n in names] for model, cases in by_case.items()
    }
    return histogram(chart, {m: [v for v in found if v is not None] for m, found in values.items()})


def curve(
    chart: Chart, names: Sequence[str], models: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Markup | None:
    """NAME@K against K; None where fewer than two K have a value.

    Every marker stands on the tick of its K; intervals are bands and whiskers.

    Args:
      chart: title and axis.
      names: of the metrics, NAME@K with K rising.
      models: model name to metric name to METRIC, as in results.json.
    """
    names = [name for name in names if any(name in found for found in models.values())]
    curves = [
        [(i, name, found[name]) for i, name in enumerate(names) if _has_value(found.get(name))]
        for found in models.values()
    ]
    if len({i for points in curves for i, _, _ in points}) < 2:
        return None
    plot = svg.Plot(f"{chart.title}, with intervals", (-0.3, len(names) - 0.6), (0.0, 1.0))
    plot.y_axis(chart.axis, [0, 0.25, 0.5, 0.75, 1], _tick)
    plot.x_axis("samples drawn (k)", range(len(names)), lambda i: names[int(i)].split("@")[1])
    for series, points in enumerate(curves):
        if len(points) > 1:
            lows = [(i, metric["low"]) for i, _, metric in points]
            highs = [(i, metric["high"]) for i, _, metric in reversed(points)]
            plot.path(lows + highs, f"band s{series % 4}")
            plot.path([(i, metric["value"]) for i, _, metric in points], f"join s{series % 4}")
    for series, (model, points) in enumerate(zip(models, curves, strict=True)):
        for i, name, metric in points:
            _whisker(plot, float(i), metric, series)
            title = (
                f"{model}, {name}: {percent(metric['value'])}, "
                f"interval {percent(metric['low'])} to {percent(metric['high'])}"
            )
            plot.mark(plot.x(i), plot.y(metric["value"]), series, title)
    for i in range(len(names)):
        at_k = [(s, m) for s, points in enumerate(curves) for j, _, m in points if i == j]
        _values(plot, i, at_k)
    return svg.markup(plot.root)


def _has_value(metric: Mapping[str, Any] | None) -> bool:
    return metric is not None and metric["value"] is not None


def _whisker(plot: svg.Plot, at: float, metric: Mapping[str, Any], series: int) -> None:
    """Draws an interval; later models get wider ends, so two on one tick can be distinguished."""
    x, low, high = plot.x(at), plot.y(metric["low"]), plot.y(metric["high"])
    cls, half = f"whisker s{series % 4}", 4 + 2 * series
    svg.add(plot.root, "line", cls=cls, x1=x, x2=x, y1=low, y2=high)
    for end in (low, high):
        svg.add(plot.root, "line", cls=cls, x1=x - half, x2=x + half, y1=end, y2=end)


def _values(plot: svg.Plot, at: int, metrics: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Writes the values of one k right of their markers, clear of each other and of the axis."""
    wanted = sorted((plot.y(metric["value"]) + 4, series, metric) for series, metric in metrics)
    baseline, lowest = -math.inf, []
    for y, _, _ in wanted:
        baseline = max(y, baseline + 13)
        lowest.append(baseline)
    limit = plot.bottom - 5.0
    for (_, series, metric), y in reversed(list(zip(wanted, lowest, strict=True))):
        y, limit = min(y, limit), min(y, limit) - 13
        text = _whole(metric["value"])
        cls = f"num start value s{series % 4}"
        svg.add(plot.root, "text", cls=cls, x=plot.x(at) + 13, y=y, text=text)


def _whole(share: float) -> str:
    """Formats a share in whole percent; 0 and 100 stand for exactly none and all."""
    text = f"{100 * share:.0f}"
    return f"{100 * share:.1f}" if text in ("0", "100") and share not in (0.0, 1.0) else text


def loss(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Training and validation loss against the step; None without a logged loss.

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


def histogram(chart: Chart, models: Mapping[str, Sequence[float]]) -> Markup | None:
    """Counts cases by their value, one row of bars per model on one scale.

    Args:
      chart: title and axis.
      models: model name to the value in [0, 1] of each of its resolved cases.

    Returns:
      The drawing; None if it would have fewer than two bars.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    # values are fractions: nudged up so that 3/10 does not fall below its edge by rounding
    counts = {
        name: np.histogram(np.minimum(np.asarray(v, np.float64) + 1e-9, 1), edges)[0]
        for name, v in models.items()
    }
    if len({int(bin) for count in counts.values() for bin in np.flatnonzero(count)}) < 2:
        return None
    highest = max(1, *(int(c.max()) for c in counts.values()))
    row, gap = max(80, 220 // len(models)), 18
    plot = svg.Plot(
        f"{chart.title}, by model",
        (0.0, 1.0),
        (0.0, 1.0),
        height=(row + gap) * len(models) + 50,
    )
    for series, (name, of_model) in enumerate(counts.items()):
        floor = float(plot.top + (row + gap) * series + row)
        scale = (row - 20) / highest
        for value in svg.ticks(0, highest, min(3, (row - 20) // 30)):
            if value == int(value):
                y = floor - value * scale
                svg.add(plot.root, "line", cls="grid", x1=plot.left, x2=plot.right, y1=y, y2=y)
                text = f"{value:g}"
                svg.add(plot.root, "text", cls="num end", x=plot.left - 7, y=y + 4, text=text)
        for i, count in enumerate(of_model):
            x, until = plot.x(edges[i]), plot.x(edges[i + 1])
            cases = "case" if count == 1 else "cases"
            title = f"{name}: {count} {cases} with {_tick(edges[i])} to {_tick(edges[i + 1])}"
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
    plot.x_axis(chart.axis, [0, 0.2, 0.4, 0.6, 0.8, 1], _tick)
    middle = (plot.top + plot.bottom) / 2
    turned = f"translate(11 {svg.number(middle)}) rotate(-90)"
    svg.add(plot.root, "text", cls="label", transform=turned, text="cases")
    return svg.markup(plot.root)


def recall_accuracy(name: str, series: int, points: Sequence[tuple[float, float]]) -> Markup | None:
    """Accuracy@1 against recall, both rounded to tenths so that bubbles do not overlap.

    A bubble's area is proportional to its number of cases, which the larger ones also show.

    Args:
      name: the model's.
      series: its place among the models.
      points: (recall, accuracy@1) of each case resolved for both.

    Returns:
      The drawing; None if recall or accuracy is the same in every case.
    """
    if not points or any(np.ptp(values) < 1e-12 for values in zip(*points, strict=True)):
        return None
    plot = svg.Plot(f"Accuracy against recall, {name}", (-0.06, 1.06), (-0.08, 1.08), height=310)
    at = [0, 0.25, 0.5, 0.75, 1]
    plot.y_axis("accuracy@1 of a case", at, _tick)
    plot.x_axis("recall of a case", at, _tick)
    counts = collections.Counter((_tenth(x), _tenth(y)) for x, y in points)
    largest = max(counts.values())
    for (x, y), count in counts.most_common():
        radius = max(2.6, 10.5 * math.sqrt(count / max(largest, 8)))
        cases = "case" if count == 1 else "cases"
        title = f"{count} {cases}: recall about {_tick(x)}, accuracy about {_tick(y)}"
        where = {"cx": plot.x(x), "cy": plot.y(y), "r": radius}
        svg.add(plot.root, "circle", title, cls=f"bubble s{series % 4}", **where)
        if radius >= 7:
            svg.add(
                plot.root, "text", cls="count", x=where["cx"], y=where["cy"] + 4, text=str(count)
            )
    return svg.markup(plot.root)


def _tenth(share: float) -> float:
    return math.floor(10 * share + 0.5 + 1e-9) / 10


def correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Returns Pearson's r; None for fewer than three points or without variation."""
    if len(points) < 3:
        return None
    x, y = np.asarray(points, np.float64).T
    if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


_LANE, _WIDE, _EDGE = 14, 320, 7  # interval drawing: height per model, width, margin


def intervals(metrics: Sequence[Mapping[str, Any] | None]) -> Markup:
    """Draws the intervals of all models on one axis from 0 to 1, one lane per model.

    Args:
      metrics: a METRIC per model; None for a model without it.
    """
    height = _LANE * len(metrics) + 6
    root = _strip(height, "range")
    for share in _QUARTERS:
        svg.add(root, "line", cls="grid", x1=_across(share), x2=_across(share), y1=0, y2=height)
    for series, metric in enumerate(metrics):
        if metric is None or metric["value"] is None:
            continue
        y = 3.0 + _LANE * (series + 0.5)
        low, high = _across(metric["low"]), _across(metric["high"])
        svg.add(root, "line", cls=f"whisker wide s{series % 4}", x1=low, x2=high, y1=y, y2=y)
        for end in (low, high):
            cls = f"whisker s{series % 4}"
            svg.add(root, "line", cls=cls, x1=end, x2=end, y1=y - 4, y2=y + 4)
        svg.sign(root, _across(metric["value"]), y, series, size=4.2)
    return svg.markup(root)


def axis() -> Markup:
    """Draws the scale above a column of `intervals`."""
    root = _strip(14, "range")
    for share in _QUARTERS:
        cls = {0: "start", 1: "end"}.get(share, "num")
        svg.add(root, "text", cls=cls, x=_across(share), y=11, text=_tick(share))
    return svg.markup(root)


_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def _across(share: float) -> float:
    return _EDGE + (_WIDE - 2 * _EDGE) * share


def _strip(height: int, cls: str) -> svg.Element:
    shape = {"viewBox": f"0 0 {_WIDE} {height}", "class": cls, "aria-hidden": "true"}
    return svg.Element("svg", shape)


def share_bar(share: float, series: int) -> Markup:
    """Draws a share of a whole as a bar."""
    root = svg.Element(
        "svg",
        {"viewBox": "0 0 100 8", "class": "share", "aria-hidden": "true"}
        | {"preserveAspectRatio": "none"},
    )
    svg.add(root, "rect", cls="trough", x=0, y=0, width=100, height=8)
    svg.add(root, "rect", cls=f"bar s{series % 4}", x=0, y=0, width=100.0 * share, height=8)
    return svg.markup(root)
