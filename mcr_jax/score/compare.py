"""Comparison of two models on the same cases: paired differences, intervals, p-values."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import statistics
from mcr_jax.metrics import METRICS, Estimate

Estimates = Mapping[str, Mapping[str, Estimate]]  # metric -> case fingerprint -> estimate
_TIE = 1e-12  # values closer than this differ by rounding only


def compare(
    a: tuple[str, Estimates], b: tuple[str, Estimates], config: ConfigDict
) -> list[dict[str, Any]]:
    """Compares model `b` with model `a`, metric by metric, over the cases resolved for both.

    Args:
      a: name and estimates of the reference model.
      b: name and estimates of the other model.
      config: reads `seed`, `score.resamples` and `score.confidence`.

    Returns:
      One entry per compared metric that both have: "difference" is b - a, with "low", "high" and
      "p_value" (null without common cases), "test", the number of "cases", and of those with equal
      values ("equal").
    """
    (name_a, of_a), (name_b, of_b) = a, b
    return [
        {"a": name_a, "b": name_b, "metric": name, **paired(of_a[name], of_b[name], config)}
        for name in (metric.name for metric in METRICS if metric.compared)
        if name in of_a and name in of_b
    ]


def paired(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], config: ConfigDict
) -> dict[str, Any]:
    """Returns the paired difference b - a of one metric; see `compare`."""
    differences = [
        b[case].value - a[case].value
        for case in sorted(a.keys() & b.keys())
        if a[case].value is not None and b[case].value is not None
    ]
    drawing = {"resamples": config.score.resamples, "seed": config.seed}
    if not differences:
        empty = dict.fromkeys(("difference", "low", "high", "p_value"))
        return {**empty, "test": "none: no case is resolved for both", "cases": 0, "equal": 0}
    low, high = statistics.interval(
        differences, confidence=config.score.confidence, bounds=(-1.0, 1.0), **drawing
    )
    p_value, test = statistics.sign_flip_test(
        differences, draws=config.score.resamples, seed=config.seed
    )
    return {
        "difference": statistics.mean(differences),
        "low": low,
        "high": high,
        "p_value": p_value,
        "test": test,
        "cases": len(differences),
        "equal": sum(abs(difference) <= _TIE for difference in differences),
    }
