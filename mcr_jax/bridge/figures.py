"""Bridge between two judges of the same completions, from a ledger that holds verdicts of both.

In: the ledger. Out: per stage of judging how the judges agree, how their accuracies differ, and
accuracy under the first judge as estimated from the second's verdicts and the measured confusion
(`agreement.carried`). When the first judge is retired, the estimate is what remains comparable with
numbers that it gave.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mcr_jax import agreement, model_specs, statistics
from mcr_jax.agreement import figure
from mcr_jax.bridge import named, rates
from mcr_jax.bridge.verdicts import Both, Counts, Flags, pairs, read
from mcr_jax.errors import McrError
from mcr_jax.generate.ledger import Ledger
from mcr_jax.metrics import Estimate
from mcr_jax.score.compare import paired
from mcr_jax.score.results import NOTICE

SCHEMA = 1
_ROUNDING = 1e-9
METRIC = {"diagnosis": "accuracy", "reasons": "recall"}  # by stage of judging


def bridge(ledger: Ledger, judges: tuple[str, str], config: ConfigDict) -> dict[str, Any]:
    """Compares two judges on every model of the ledger.

    Args:
      ledger: may be read-only.
      judges: names in the ledger, the one to be carried to first.
      config: reads `seed`, `sample.models`, `judge.recall_samples` and `score`.

    Returns:
      {"judges", "config", "notice", "schema", "versions", "repeats", "stages"}. "versions" and
      "repeats" are by judge and stage, see `verdicts.Counts`. "stages" has an entry for each stage
      that both judged: "all" and "models" with the tables (`_table`), per model also the
      accuracies and the estimate, and "comparisons" of every two models with the differences
      (`_differences`) and the "rates" (`rates.rates`).

    Raises:
      McrError: a judge has no verdicts, no item has a verdict of both, or a row is damaged.
    """
    there, scopes = named.judges(ledger), ledger.scopes()
    for judge in judges:
        if judge not in there:
            raise McrError(
                f"{ledger.path}: no verdicts of judge {judge!r}; "
                f"there are {', '.join(there) or 'none'}"
            )
    listed = model_specs.names(config)
    names = {scope.model for scope in scopes if scope.stage == "sample"}
    models = [m for m in listed if m in names] + sorted(names.difference(listed))
    counts = {
        judge: Counts(*({stage: collections.Counter() for stage in METRIC} for _ in range(2)))
        for judge in judges
    }
    stages = {}
    for stage in METRIC:
        if all(stage in there[judge] for judge in judges):
            rows = {model: read(ledger, stage, model, judges, config, counts) for model in models}
            if any(pair for of_model in rows.values() for pair in map(pairs, of_model)):
                stages[stage] = _stage(rows, config)
    if not stages:
        raise McrError(f"{ledger.path}: no completion has a verdict of {' and of '.join(judges)}")
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "judges": list(judges),
        "versions": {judge: _listed(of_judge.versions) for judge, of_judge in counts.items()},
        "repeats": {judge: _listed(of_judge.repeats) for judge, of_judge in counts.items()},
        "config": {"seed": config.seed, **config.score.to_dict()},
        "stages": stages,
    }


def _listed(by_stage: Mapping[str, collections.Counter]) -> dict[str, dict[str, int]]:
    return {
        stage: {str(name): count for name, count in counted.most_common()}
        for stage, counted in by_stage.items()
    }


def _stage(by_model: Mapping[str, Sequence[Both]], config: ConfigDict) -> dict[str, Any]:
    every = [both for rows in by_model.values() for both in rows]
    calibration = _tables(every)
    models = {
        model: _model(rows, calibration, config)
        for model, rows in by_model.items()
        if any(both.second for both in rows)
    }
    tables = {model: _tables(by_model[model]) for model in models}
    comparisons = [
        {
            "a": a,
            "b": b,
            **_differences(by_model[a], by_model[b], calibration, config),
            "rates": rates.rates(tables[a], tables[b], config),
        }
        for a, b in itertools.combinations(models, 2)
    ]
    rates.adjust(comparisons)
    return {"all": _table(calibration, config), "models": models, "comparisons": comparisons}


def _tables(rows: Iterable[Both]) -> dict[str, np.ndarray]:
    """Counts the items that both judged, by case: tables of `agreement`."""
    found = collections.defaultdict(list)
    for both in rows:
        found[both.case] += pairs(both)
    return {case: agreement.tabulated(of_case) for case, of_case in found.items() if of_case}


def _table(tables: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, Any]:
    """Returns the confusion table of cases with agreement, kappa and AC1, each with an interval.

    "prevalence": the share of yes by judge; "repeats": how often the second judge repeats a yes and
    a no of the first. What is undefined is null.
    """
    by_case = np.array([tables[case] for case in sorted(tables)]).reshape(-1, 4)
    counts = by_case.sum(axis=0)
    return {
        "cases": len(by_case),
        "items": int(counts.sum()),
        "confusion": dict(zip(agreement.CELLS, map(int, counts), strict=True)),
        **agreement.agreements(by_case, **_drawing(config)),
        "prevalence": [_number(share) for share in agreement.prevalence(counts)],
        "repeats": [_number(share) for share in agreement.hit_rates(counts)],
    }


def _model(
    rows: Sequence[Both], calibration: Mapping[str, np.ndarray], config: ConfigDict
) -> dict[str, Any]:
    """Returns a model's table, its accuracy under each judge, their difference and the estimate.

    "judged": accuracy under the first and the second judge, each on what it settled. "difference":
    second - first, on completions that both settled. "estimated": accuracy under the first judge
    from the second's verdicts. "shift": that minus the accuracy under the second. "clipped":
    whether the estimate or an end of its interval was outside of what is possible.
    """
    both = [row for row in rows if row.first is not None and row.second is not None]
    of_judge = [[(r.case, r.first) for r in rows], [(r.case, r.second) for r in rows]]
    of_both = [[(r.case, r.first) for r in both], [(r.case, r.second) for r in both]]
    target = _shares(of_judge[1])
    estimated = _carried_figures(target, calibration, config)
    return {
        **_table(_tables(rows), config),
        "judged": [_mean(_shares(flags), config) for flags in of_judge],
        "difference": paired(*(_estimates(_shares(flags)) for flags in of_both), config),
        **estimated,
    }


def _shares(rows: Iterable[tuple[str, Flags]]) -> dict[str, tuple[float, float]]:
    """Returns, per case with a settled completion, its share of yes and its share with items."""
    found = collections.defaultdict(list)
    for case, flags in rows:
        if flags is not None:
            found[case].append((sum(flags) / len(flags) if flags else 0.0, float(bool(flags))))
    return {
        case: (statistics.mean([v for v, _ in of_case]), statistics.mean([j for _, j in of_case]))
        for case, of_case in sorted(found.items())
    }


def _estimates(shares: Mapping[str, tuple[float, float]]) -> dict[str, Estimate]:
    return {case: Estimate(share, share, share) for case, (share, _) in shares.items()}


def _mean(shares: Mapping[str, tuple[float, float]], config: ConfigDict) -> dict[str, Any]:
    values = [share for share, _ in shares.values()]
    if not values:
        return {**figure(np.nan, None), "cases": 0}
    found = statistics.interval(values, **_drawing(config))
    return {**figure(statistics.mean(values), found), "cases": len(values)}


def _carried_figures(
    target: Mapping[str, tuple[float, float]],
    calibration: Mapping[str, np.ndarray],
    config: ConfigDict,
) -> dict[str, Any]:
    """Estimates the accuracy under the first judge on the cases of `target`, with its shift.

    The interval carries both samples: cases are resampled with their part in each. The estimate
    and its interval are clipped to what is possible, the shift is of the unbiased estimate.
    """

    def estimate(sums: np.ndarray) -> np.ndarray:
        return _carried(sums, 4)

    def shift(sums: np.ndarray) -> np.ndarray:
        return _carried(sums, 4) - sums[..., 4] / sums[..., 6]

    sums, strata = _rows(calibration, target)
    judged = sums[:, 5].sum() / sums[:, 6].sum()
    unbiased = _drawn(sums, strata, estimate, config)
    estimated = {
        name: None if end is None else min(max(end, 0.0), judged) for name, end in unbiased.items()
    }
    clipped = any(
        end is not None and abs(end - estimated[name]) > _ROUNDING for name, end in unbiased.items()
    )
    shifted = _drawn(sums, strata, shift, config)
    return {"estimated": estimated, "clipped": clipped, "shift": shifted}


def _differences(
    a: Sequence[Both],
    b: Sequence[Both],
    calibration: Mapping[str, np.ndarray],
    config: ConfigDict,
) -> dict[str, Any]:
    """Returns the difference b - a of two models under each judge, and carried to the first.

    "first" and "second": paired by case under that judge; null without a case that it judged for
    both models. "corrected": of the two unbiased estimates, so not clipped.
    """
    firsts = [_shares((row.case, row.first) for row in rows) for rows in (a, b)]
    of_a, of_b = (_shares((row.case, row.second) for row in rows) for rows in (a, b))
    sums, strata = _rows(calibration, of_a, of_b)
    return {
        "first": paired(*map(_estimates, firsts), config),
        "second": paired(_estimates(of_a), _estimates(of_b), config),
        "corrected": _drawn(sums, strata, lambda s: _carried(s, 7) - _carried(s, 4), config),
    }


def _rows(
    calibration: Mapping[str, np.ndarray], *targets: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray, list[int]]:
    """Returns numbers to be summed over cases, and a stratum per case: the samples that it is in.

    Columns: the table, then for each target share of yes, share with items, and 1.
    """
    cases = sorted(calibration.keys() | {case for target in targets for case in target})
    sums = np.zeros((len(cases), 4 + 3 * len(targets)))
    strata = []
    for line, case in enumerate(cases):
        if case in calibration:
            sums[line, :4] = calibration[case]
        for place, target in enumerate(targets):
            if case in target:
                at = 4 + 3 * place
                sums[line, at : at + 3] = (*target[case], 1.0)
        samples = (calibration, *targets)
        strata.append(sum(2**place for place, sample in enumerate(samples) if case in sample))
    return sums, strata


def _carried(sums: np.ndarray, at: int) -> np.ndarray:
    cases = sums[..., at + 2]
    return agreement.carried(sums[..., at] / cases, sums[..., at + 1] / cases, sums[..., :4])


def _drawn(
    sums: np.ndarray, strata: Sequence[int], statistic: agreement.Statistic, config: ConfigDict
) -> dict[str, float | None]:
    found = agreement.interval(sums, statistic, strata=strata, **_drawing(config))
    return figure(statistic(sums.sum(axis=0)), found)


def _drawing(config: ConfigDict) -> dict[str, Any]:
    c = config.score
    return {"confidence": c.confidence, "resamples": c.resamples, "seed": config.seed}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
