"""Numbers of a comparison: every pair of models on every metric, over the cases common to all.

Differences are paired by case. Intervals and sign-flip tests are those of results.json; Holm's
correction is over all pairs and metrics.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import statistics
from mcr_jax.compare.chosen import Chosen, common, differences
from mcr_jax.metrics import HEADLINE, METRICS, CaseScore, Estimate
from mcr_jax.score import results
from mcr_jax.score.compare import Estimates, compare

SCHEMA = 1
RESAMPLES = 10_000  # at least
_PER_TEST = 100  # draws: p is at least 1 / draws, and the smallest adjusted p at most 0.01


def numbers(models: Sequence[Chosen]) -> dict[str, Any]:
    """Compares every two models.

    Args:
      models: at least two. Seed, confidence and resamples are those of the first's results.json;
        many tests take more resamples, also of the signs, so that Holm's p can be small.

    Returns:
      "models": metrics of each over the common cases, and facts of its workdir. "comparisons": one
      entry per pair and metric with the fields of results.json, "p_holm", "worst" and "best" (the
      difference with everything unresolved against b, and for b), and with one sample per case
      "mcnemar". "disagreements": per pair the cases with another accuracy@1. "differences": what
      the workdirs differ in.

    Raises:
      McrError: no case is common to all.
    """
    cases = common(models)
    recorded = models[0].results["config"]
    tests = math.comb(len(models), 2) * sum(metric.compared for metric in METRICS)
    resamples = int(max(RESAMPLES, recorded["resamples"], _PER_TEST * tests))
    score = {"confidence": recorded["confidence"], "resamples": resamples}
    config = ConfigDict({"seed": int(recorded["seed"]), "score": score})
    by_model = {model.label: _estimates(model, cases) for model in models}
    compared = []
    for a, b in itertools.combinations(models, 2):
        of_a, of_b = by_model[a.label], by_model[b.label]
        for entry in compare((a.label, of_a), (b.label, of_b), config):
            name = entry["metric"]
            compared.append(entry | _bounds(of_a[name], of_b[name]) | _mcnemar(name, a, b, cases))
    tested = [entry for entry in compared if entry["p_value"] is not None]
    adjusted = statistics.holm([entry["p_value"] for entry in tested])
    for entry in compared:
        entry["p_holm"] = None
    for entry, p_value in zip(tested, adjusted, strict=True):
        entry["p_holm"] = p_value
    return {
        "schema": SCHEMA,
        "notice": results.NOTICE,
        "config": {"seed": config.seed, **score},
        "cases": len(cases),
        "tests": len(tested),
        "differences": differences(models),
        "models": {
            model.label: {
                "workdir": str(model.folder),
                "model": model.model,
                "cases": len(model.cases),
                "facts": {**model.facts, **model.about},
                "metrics": {
                    name: results.metric(of_case, config)
                    for name, of_case in by_model[model.label].items()
                },
            }
            for model in models
        },
        "comparisons": compared,
        "disagreements": [
            {"a": a.label, "b": b.label, **_disagreements(a, b, cases)}
            for a, b in itertools.combinations(models, 2)
        ],
    }


def _estimates(model: Chosen, cases: Sequence[str]) -> Estimates:
    """Returns the metrics of a model over `cases`: values as scored, bounds from the samples."""
    found = {}
    for entry in METRICS:
        if any(entry.name in model.cases[case]["metrics"] for case in cases):
            found[entry.name] = {
                case: entry.estimate(_score(model.cases[case]))._replace(
                    value=model.cases[case]["metrics"].get(entry.name)
                )
                for case in cases
            }
    return found


def _score(case: Mapping[str, Any]) -> CaseScore:
    fields = ("kinds", "rules", "right", "recall", "recall_verified")
    return CaseScore(**{name: case.get(name, []) for name in fields})


def _bounds(a: Mapping[str, Estimate], b: Mapping[str, Estimate]) -> dict[str, float]:
    return {
        "worst": statistics.mean([b[case].worst - a[case].best for case in a]),
        "best": statistics.mean([b[case].best - a[case].worst for case in a]),
    }


def _mcnemar(name: str, a: Chosen, b: Chosen, cases: Sequence[str]) -> dict[str, Any]:
    """Returns McNemar's exact test of accuracy@1 with one sample per case, under "mcnemar"."""
    if name != HEADLINE or any(len(m.cases[case]["right"]) != 1 for m in (a, b) for case in cases):
        return {}
    pairs = [(_value(a, case), _value(b, case)) for case in cases]
    only_a, only_b = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    p_value = statistics.mcnemar_test(only_a, only_b)
    return {"mcnemar": {"only_a": only_a, "only_b": only_b, "p_value": p_value}}


def _disagreements(a: Chosen, b: Chosen, cases: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the cases that a, and that b, gets more often; the largest differences first.

    Each case has its fingerprint and, per model, the number of right, wrong and unresolved samples.
    """
    found: dict[str, list[dict[str, Any]]] = {"a_more": [], "b_more": []}
    gaps = []
    for case in cases:
        values = _value(a, case), _value(b, case)
        if None not in values and values[0] != values[1]:
            gaps.append((values[1] - values[0], case))
    for gap, case in sorted(gaps, key=lambda item: (-abs(item[0]), item[1])):
        tally = {"case": case, "a": _tally(a, case), "b": _tally(b, case)}
        found["b_more" if gap > 0 else "a_more"].append(tally)
    return found


def _value(model: Chosen, case: str) -> float | None:
    return model.cases[case]["metrics"].get(HEADLINE)


def _tally(model: Chosen, case: str) -> list[int]:
    rights = model.cases[case]["right"]
    return [rights.count(True), rights.count(False), rights.count(None)]
