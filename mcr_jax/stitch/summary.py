"""Statistics of stitching: stitch.json and its table.

"First" describes the first sample of every case: the traces without audit and judge. "Kept"
describes the final traces. Their difference, the statements turned, left out or added, and the
share of cases that fell back to joined statements measure how much this model distorts the reasons.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mcr_jax.data.traces import JOINED, STITCHED, Trace
from mcr_jax.judges import distortion
from mcr_jax.stitch.meaning import Meaning, verdict_of
from mcr_jax.stitch.write import REASONS

SCHEMA = 1
NOTICE = "Research use, not for patient care"
_MAX_NAMES = 20  # most frequent additions that stitch.json lists

Interval = Callable[[Sequence[float]], tuple[float, float]]  # of the mean of values, one per case

_ROWS = {
    "coverage": "statements kept",
    "faultless": "without any fault",
    "with_additions": "with names or numbers that the case lacks",
    "early": "naming the diagnosis early",
    "length_ratio": "words per word of the statements",
}
_JUDGED_ROWS = {
    "with_turned": "with a statement turned",
    "with_missing": "with a statement left out",
    "with_added": "with something added",
}


def summarize(
    rows: Sequence[Trace], interval: Interval, confidence: float, judge: Meaning | None = None
) -> dict[str, Any]:
    """Returns the content of stitch.json, except for `traces`.

    Args:
      rows: at least one.
      interval: computes the interval of a mean of values between 0 and 1.
      confidence: level of these intervals.
      judge: holds the verdicts on samples of these cases; None without a judge.
    """

    def mean(values: Sequence[float]) -> dict[str, Any]:
        if not values:
            return {"value": None, "low": None, "high": None, "cases": 0}
        low, high = interval(values)
        return {"value": sum(values) / len(values), "low": low, "high": high, "cases": len(values)}

    def ratio(values: Sequence[float]) -> dict[str, Any]:
        return {"value": sum(values) / len(values) if values else None, "cases": len(values)}

    with_text = [row for row in rows if row.length_first is not None]
    known = rows if all(row.coverage is not None for row in rows) else []
    fallbacks = [row for row in rows if row.source == JOINED]
    reasons = collections.Counter(next(r for r in REASONS if r in row.faults) for row in fallbacks)
    added = collections.Counter(name for row in with_text for name in row.additions_first)
    outcomes = collections.Counter(outcome for row in rows for outcome in row.outcomes)
    attempts = collections.Counter(row.attempts for row in rows)
    versions = sorted({row.model_version for row in rows})
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "model": rows[0].model,
        "model_versions": versions,
        "prompt": rows[0].prompt,
        "confidence": confidence,
        "cases": dict(sorted(collections.Counter(row.split for row in rows).items())),
        "first": {
            "coverage": mean([r.coverage_first for r in with_text if r.coverage_first is not None]),
            "faultless": mean([float(not row.faults_first) for row in rows]),
            "with_additions": mean([float(bool(row.additions_first)) for row in with_text]),
            "early": mean([float("early" in row.faults_first) for row in with_text]),
            "length_ratio": ratio([row.length_first for row in with_text]),
            "faults": _counts(fault for row in rows for fault in row.faults_first),
        },
        "kept": {
            "coverage": mean([row.coverage for row in known]),
            "coverage_of_stitched": mean([r.coverage for r in known if r.source == STITCHED]),
            "with_additions": mean([float(bool(row.additions)) for row in rows]),
            "length_ratio": ratio([row.length for row in rows]),
        },
        "joined": {
            "share": mean([float(row.source == JOINED) for row in rows]),
            "reasons": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        },
        "attempts": {str(n): count for n, count in sorted(attempts.items())},
        "outcomes": dict(sorted(outcomes.items())),
        "added_names": dict(added.most_common(_MAX_NAMES)),
        "distortion": _judged(rows, judge, mean) if judge else None,
    }


def _judged(
    rows: Sequence[Trace], judge: Meaning, mean: Callable[[Sequence[float]], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the judge's findings in the first samples and in the final stitched traces."""
    found = {(row.case, row.sample): attempt for row, attempt in judge.verdicts.items()}
    first = [(row.fingerprint, 0) for row in rows]
    kept = [(row.fingerprint, row.attempts - 1) for row in rows if row.source == STITCHED]

    def part(places: Sequence[tuple[str, int]]) -> dict[str, Any]:
        judged = [found[place] for place in places if place in found]
        known = [verdict for attempt in judged if (verdict := verdict_of(attempt)) is not None]
        words = collections.Counter(word for verdict in known for word in verdict["verdicts"])
        return {
            "traces": len(judged),
            "unresolved": len(judged) - len(known),
            "statements": {word: words[word] for word in distortion.VERDICTS},
            "added": sum(len(verdict["added"]) for verdict in known),
            "with_turned": mean([float(distortion.TURNED in v["verdicts"]) for v in known]),
            "with_missing": mean([float(distortion.MISSING in v["verdicts"]) for v in known]),
            "with_added": mean([float(bool(v["added"])) for v in known]),
        }

    versions = sorted({a.model_version for a in found.values() if verdict_of(a) is not None})
    return {**judge.about, "model_versions": versions, "first": part(first), "kept": part(kept)}


def table(summary: dict[str, Any]) -> Group:
    """Returns the most important figures as a title and a table."""
    title = Text(  # a title of the table itself would wrap at its width
        f"Traces of {sum(summary['cases'].values()):,} cases by {summary['model']}: "
        f"means [{100 * summary['confidence']:.4g} % interval]",
        style="bold",
    )
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of a trace", "first sample", "kept"):
        grid.add_column(column)
    for name, label in _ROWS.items():
        grid.add_row(label, _figure(summary["first"].get(name)), _figure(summary["kept"].get(name)))
    if judged := summary.get("distortion"):
        for name, label in _JUDGED_ROWS.items():
            first, kept = judged["first"].get(name), judged["kept"].get(name)
            grid.add_row(f"{label}, by {judged['judge']}", _figure(first), _figure(kept))
    joined = summary["joined"]
    grid.add_row("statements joined instead", "", _figure(joined["share"]))
    for reason in (reason for reason in REASONS if reason in joined["reasons"]):
        count = joined["reasons"][reason]
        grid.add_row(f"  because {reason.replace('_', ' ')}", "", f"{count:,}")
    return Group(title, grid)


def _counts(faults: Any) -> dict[str, int]:
    counted = collections.Counter(faults)
    return {reason: counted[reason] for reason in REASONS if counted[reason]}


def _figure(metric: dict[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    if "low" not in metric:
        return f"{metric['value']:.2f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
