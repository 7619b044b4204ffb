"""The page of a comparison: a forest plot of the differences, the models, and where they disagree.

One file without a script that works offline, in the style of the report. Names and diagnoses are
untrusted text: the template escapes them, and hidden characters are written out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mcr_jax.compare.chosen import by_value
from mcr_jax.metrics import HEADLINE, METRICS
from mcr_jax.report import charts, svg
from mcr_jax.report.evidence import visible
from mcr_jax.report.page import metric_rows, render
from mcr_jax.score import layout

SHOWN = 200  # cases in a list; the rest is counted
_WIDE, _HEIGHT, _EDGE = 320, 26, 10
Names = Mapping[str, tuple[str, str]]  # fingerprint to id and diagnosis


def page(
    found: Mapping[str, Any], lines: Sequence[str], names: Names, *, fictional: bool = False
) -> str:
    """Returns the page as HTML.

    Args:
      found: as `pairs.numbers` returns it.
      lines: what the workdirs differ in, a line each.
      names: id and diagnosis of cases; others are shown by their fingerprint.
      fictional: whether every case is invented.
    """
    labels = list(found["models"])
    series = {label: number for number, label in enumerate(labels)}
    reach = _reach(found["comparisons"])
    context = {
        "found": found,
        "level": f"{100 * found['config']['confidence']:g} %",
        "lines": [visible(line) for line in lines],
        "fictional": fictional,
        "models": [visible(label) for label in labels],
        "keys": [charts.key(number) for number in range(len(labels))],
        "lede": _lede(found),
        "axis": charts.axis(),
        "forest_axis": _axis(reach),
        "groups": _groups(found, series, reach),
        "rows": metric_rows([model["metrics"] for model in found["models"].values()]),
        "facts": _facts(found["models"]),
        "pairs": [_cases(pair, names, series) for pair in found["disagreements"]],
        "percent": charts.percent,
        "points": charts.points,
    }
    return render(context, "forest.html", "mcr_jax.compare")


def _lede(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the headline comparison of two models, for the opening sentence."""
    entry = next((c for c in found["comparisons"] if c["metric"] == HEADLINE), None)
    if len(found["models"]) != 2 or entry is None or entry["difference"] is None:
        return None
    return {"entry": entry, "a": visible(entry["a"]), "b": visible(entry["b"])}


def _groups(
    found: Mapping[str, Any], series: Mapping[str, int], reach: float
) -> list[dict[str, Any]]:
    """Returns the forest: per metric its rows, each a pair of models."""
    groups = []
    for metric in METRICS:
        entries = [entry for entry in found["comparisons"] if entry["metric"] == metric.name]
        if entries:
            rows = [
                {
                    "name": f"{visible(entry['b'])} − {visible(entry['a'])}",
                    "entry": entry,
                    "drawn": _strip(entry, reach, series[entry["b"]]),
                    "open": entry["cases"] < found["cases"],
                    "equal": layout.equal(entry),
                }
                for entry in entries
            ]
            groups.append({"label": metric.label, "meaning": metric.meaning, "rows": rows})
    return groups


def _cases(pair: Mapping[str, Any], names: Names, series: Mapping[str, int]) -> dict[str, Any]:
    """Returns the two lists of cases on which a pair disagrees."""
    sides = []
    for winner, loser in (("a", "b"), ("b", "a")):
        cases = pair[f"{winner}_more"]
        listed = [
            {
                "id": visible(names.get(case["case"], (case["case"][:12], ""))[0]),
                "diagnosis": visible(names.get(case["case"], ("", ""))[1]),
                "winner": _tally(case[winner]),
                "loser": _tally(case[loser]),
            }
            for case in cases[:SHOWN]
        ]
        sides.append(
            {
                "winner": visible(pair[winner]),
                "loser": visible(pair[loser]),
                "key": charts.key(series[pair[winner]]),
                "series": series[pair[winner]] % 4,
                "cases": listed,
                "count": len(cases),
                "rest": len(cases) - len(listed),
            }
        )
    return {"a": visible(pair["a"]), "b": visible(pair["b"]), "sides": sides}


def _facts(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the recorded facts of the models: each with its values, and whose they are."""
    by_model = [
        {**model["facts"], "cases in the workdir": str(model["cases"])} for model in models.values()
    ]
    labels = list(map(visible, models))
    return [
        {"name": name, "values": by_value([visible(facts[name]) for facts in by_model], labels)}
        for name in by_model[0]
        if any(facts[name] for facts in by_model)
    ]


def _tally(counts: Sequence[int]) -> str:
    right, wrong, unresolved = counts
    if right + wrong == 1 and not unresolved:
        return "right" if right else "wrong"
    line = f"{right} of {right + wrong} right"
    return f"{line}, {unresolved} unresolved" if unresolved else line


def _reach(entries: Sequence[Mapping[str, Any]]) -> float:
    """Returns the half width of the axis: 5, 10, 20, 50 or 100 points, to hold every interval."""
    ends = [abs(e[end]) for e in entries for end in ("low", "high") if e["difference"] is not None]
    largest = max(ends, default=1.0)
    return next((reach for reach in (0.05, 0.1, 0.2, 0.5) if largest <= reach), 1.0)


def _across(difference: float, reach: float) -> float:
    share = (max(-reach, min(reach, difference)) + reach) / (2.0 * reach)
    return _EDGE + (_WIDE - 2 * _EDGE) * share


def _ticks(reach: float) -> list[float]:
    return [-reach, -reach / 2, 0.0, reach / 2, reach]


def _empty(height: int) -> svg.Element:
    shape = {"viewBox": f"0 0 {_WIDE} {height}", "class": "range", "aria-hidden": "true"}
    return svg.Element("svg", shape)


def _axis(reach: float) -> Markup:
    """Draws the scale above the forest, in percentage points."""
    root = _empty(14)
    for place, value in enumerate(_ticks(reach)):
        cls = {0: "start", 4: "end"}.get(place, "num")
        x = _across(value, reach) + {0: -_EDGE, 4: _EDGE}.get(place, 0)
        text = f"{100 * value:+g}".replace("-", "−") if value else "0"
        svg.add(root, "text", cls=cls, x=float(x), y=11, text=text)
    return svg.markup(root)


def _strip(entry: Mapping[str, Any], reach: float, series: int) -> Markup:
    """Draws a difference with its interval around a line at 0."""
    root = _empty(_HEIGHT)
    for value in _ticks(reach):
        x = _across(value, reach)
        cls = "grid" if value else "axis"
        svg.add(root, "line", cls=cls, x1=x, x2=x, y1=0, y2=_HEIGHT)
    if entry["difference"] is None or not math.isfinite(entry["difference"]):
        return svg.markup(root)
    y, cls = _HEIGHT / 2, f"s{series % 4}"
    low, high = (_across(entry[end], reach) for end in ("low", "high"))
    svg.add(root, "line", cls=f"whisker wide {cls}", x1=low, x2=high, y1=y, y2=y)
    for end in (low, high):
        svg.add(root, "line", cls=f"whisker {cls}", x1=end, x2=end, y1=y - 5, y2=y + 5)
    svg.sign(root, _across(entry["difference"], reach), y, series, size=5.0)
    return svg.markup(root)
