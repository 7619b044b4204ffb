"""Metrics of the benchmark, one entry each in `METRICS`.

A metric is a mean over cases of a number in [0, 1]. To add one, add an entry: results, comparisons,
the terminal's table, the page and the checks of results.json and scores.json read the list.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple


class Estimate(NamedTuple):
    """One case's share of a metric, each number in [0, 1].

    Attributes:
      value: from resolved samples; None where they do not suffice.
      worst: with everything unresolved counted as wrong; at most `value`.
      best: with everything unresolved counted as right; at least `value`.
    """

    value: float | None
    worst: float
    best: float


UNRESOLVED = Estimate(None, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """Samples of one model on one case, as scores.json lists them.

    Attributes:
      kinds: how each sample ended, by sample index: an `Outcome` of generate.api, where OK has
        exactly one answer, or "no_answer" or "missing".
      rules: which of `completion.RULES` read its answer; None without an answer.
      right: whether each sample is right; None while unresolved.
      recall: one number per sample judged for recall (samples 0, 1, ...): the share of statements
        found in the trace; None while unresolved.
      recall_verified: the same, of statements found with a quote that stands in the trace.
      repeats: with several verdicts per sample, the last three by name, each sample a list of one
        value per repeat; else empty.
    """

    kinds: Sequence[str]
    rules: Sequence[str | None]
    right: Sequence[bool | None]
    recall: Sequence[float | None]
    recall_verified: Sequence[float | None]
    repeats: Mapping[str, Sequence[Sequence[Any]]] = dataclasses.field(default_factory=dict)


class Chart(NamedTuple):
    """A drawing on the page; metrics with the same chart share it.

    Attributes:
      kind: "curve" draws NAME@K against K; "histogram" counts cases by their value.
      title: of the figure.
      caption: one sentence below it.
      axis: label of the axis of values.
    """

    kind: Literal["curve", "histogram"]
    title: str
    caption: str
    axis: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
      name: key in comparisons and scores.json; NAME@K is nested in results.json, {NAME: {K: ...}}.
      label: on the page.
      short: in the terminal's table.
      meaning: a few words on the page.
      estimate: its value for one case.
      samples: samples per case that it needs; a model with fewer does not have the metric.
      compared: whether models are compared by it.
      chart: on which it is drawn; None for the interval in the table alone.
    """

    name: str
    label: str
    short: str
    meaning: str
    estimate: Callable[[CaseScore], Estimate]
    samples: int = 1
    compared: bool = True
    chart: Chart | None = None


def accuracy_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c right ones.

    1 - C(n-c, k) / C(n, k): the unbiased estimate of pass@k (Chen et al., arXiv:2107.03374). The
    binomials are exact integers and only the final division rounds: no overflow, no cancellation.

    Raises:
      ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"no accuracy@{k} from {c} right of {n} samples")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def case_accuracy(right: Sequence[bool | None], k: int) -> Estimate:
    """accuracy@k of one case from its samples, of which at least k must be resolved.

    With fewer resolved samples the case has no value, and its bounds are 0 and 1.
    """
    n, c, unresolved = len(right), right.count(True), right.count(None)
    if n - unresolved < k:
        return UNRESOLVED
    return Estimate(
        accuracy_at_k(n - unresolved, c, k),
        accuracy_at_k(n, c, k),
        accuracy_at_k(n, c + unresolved, k),
    )


def case_mean(shares: Sequence[float | None]) -> Estimate:
    """Mean over the resolved samples of one case, if there are any."""
    known = [share for share in shares if share is not None]
    if not known:
        return UNRESOLVED
    total, unresolved = math.fsum(known), len(shares) - len(known)
    return Estimate(
        total / len(known), total / len(shares), min(1.0, (total + unresolved) / len(shares))
    )


def _accuracy(k: int, label: str, meaning: str) -> Metric:
    return Metric(
        name=f"accuracy@{k}",
        label=label,
        short=f"accuracy@{k}",
        meaning=meaning,
        estimate=lambda case: case_accuracy(case.right, k),
        samples=k,
        chart=_ACCURACY,
    )


_ACCURACY = Chart(
    "curve",
    "More samples, more chances",
    "Share of cases where any of k samples is right.",
    "cases right",
)

METRICS = [
    _accuracy(1, "Accuracy, 1 sample", "one sample names the diagnosis"),
    _accuracy(5, "Accuracy, 5 samples", "any of five does"),
    _accuracy(10, "Accuracy, 10 samples", "any of ten does"),
    Metric(
        name="reasoning_recall",
        label="Reasoning recall",
        short="recall",
        meaning="clinician’s statements that the trace makes",
        estimate=lambda case: case_mean(case.recall),
        chart=Chart(
            "histogram",
            "How much of the reasoning is there",
            "Cases by the share of the clinician’s statements found in the trace.",
            "recall of a case",
        ),
    ),
    Metric(
        name="reasoning_recall_verified",
        label="… with its quote",
        short="verified recall",
        meaning="and whose quote stands in the trace",
        estimate=lambda case: case_mean(case.recall_verified),
        compared=False,
    ),
]
HEADLINE = "accuracy@1"  # every results.json has it


def of_model(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The METRIC values that a model's entry of results.json has, by metric name."""
    found = {}
    for metric in METRICS:
        value: Any = entry
        for key in metric.name.split("@"):
            value = value.get(key, {})
        if value:
            found[metric.name] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns {"NAME@K": value} into the nested form of results.json, {NAME: {K: value}}."""
    entry: dict[str, Any] = {}
    for name, value in values.items():
        *folders, last = name.split("@")
        inside = entry
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[last] = value
    return entry
