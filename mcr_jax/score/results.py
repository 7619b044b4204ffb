"""Scoring: completions and verdicts in the ledger become scores.json and results.json.

It needs the ledger and the manifest only, so `score.verify` repeats it offline. The same ledger and
config give the same bytes.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, statistics
from mcr_jax.completion import RULES
from mcr_jax.generate import prices as price_rows
from mcr_jax.generate import spending
from mcr_jax.generate.joined import Joined, Sample, counting, join
from mcr_jax.generate.ledger import opened
from mcr_jax.judge_specs import Judge, headline
from mcr_jax.metrics import METRICS, CaseScore, Estimate, nested
from mcr_jax.score import several
from mcr_jax.score.compare import Estimates, compare
from mcr_jax.score.cost import with_usage
from mcr_jax.score.samples import KINDS, collect
from mcr_jax.workdir import Workdir

SCHEMA = 1
NOTICE = "Research use, not for patient care"


def score(workdir: Workdir, config: ConfigDict) -> dict[str, Any]:
    """Scores every model in `config.sample.models` and writes scores.json and results.json.

    Args:
      workdir: holds the ledger; its manifest's sections "data" and "judge" go into the results.
      config: a resolved config; reads `name`, `seed`, `sample.models`, `judge`, `score`, `prices`.

    Returns:
      The content of results.json, schema 1: per model its `metrics.METRICS`, "outcomes", "answers"
      and "usage"; "comparisons" of consecutive models; "data", "judge", "config", "prices" and
      "notice". All verdicts in them are of the first judge; "judges" holds the further ones, if
      there are any.

    Raises:
      McrError: a model has no completions, or a verdict in the ledger has another form.
      UsageError: the file of config.prices cannot be used.
    """
    prices = price_rows.load(config.prices)
    with opened(workdir, readonly=True) as ledger:
        joined = join(ledger, config)
        others = several.further(ledger, config, joined)
        results, scores = tabulate(joined, others, workdir, config)
        results = with_usage(results, spending.read(ledger), prices)
    workdir.write_json(workdir.scores, scores)
    workdir.write_json(workdir.results, results)
    return results


def estimates(cases: Mapping[str, CaseScore]) -> Estimates:
    """Returns every metric of one model that its number of samples allows, case by case."""
    most = max(len(case.kinds) for case in cases.values())
    return {
        metric.name: {f: metric.estimate(case) for f, case in cases.items()}
        for metric in METRICS
        if metric.samples <= most
    }


def metric(cases: Mapping[str, Estimate], config: ConfigDict) -> dict[str, Any]:
    """Returns a METRIC of results.json: mean over resolved cases, interval and coverage."""
    values = [estimate.value for estimate in cases.values() if estimate.value is not None]
    low = high = None
    if values:
        low, high = statistics.interval(
            values,
            confidence=config.score.confidence,
            resamples=config.score.resamples,
            seed=config.seed,
        )
    return {
        "value": statistics.mean(values) if values else None,
        "low": low,
        "high": high,
        "resolved": len(values),
        "total": len(cases),
        "worst": statistics.mean([estimate.worst for estimate in cases.values()]),
        "best": statistics.mean([estimate.best for estimate in cases.values()]),
    }


def tabulate(
    joined: Joined,
    others: Iterable[tuple[Judge, dict[str, list[Sample]]]],
    workdir: Workdir,
    config: ConfigDict,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Computes results.json without usage, and scores.json, from ledger and manifest alone.

    Args:
      joined: the completions with the verdicts of the first judge.
      others: the further judges, as `several.further` yields them.
      workdir: its manifest is read.
      config: as for `score`.
    """
    collected = {model: collect(samples, config) for model, samples in joined.models.items()}
    by_metric = _estimates(joined, collected)
    first = headline(config)
    judge = {
        **several.noted(workdir, first, config),
        "name": first.name,
        "verdicts": several.verdict_counts(joined, config),
        "versions": joined.versions,
    }
    if config.judge.version:
        judge["version"] = config.judge.version
    if joined.note:
        judge["note"] = joined.note
    if config.judge.repeat > 1:
        judge |= several.repeated(joined, config)
    results = {
        "schema": SCHEMA,
        "notice": NOTICE,
        "config": {
            "name": config.name,
            "seed": config.seed,
            "samples": config.sample.n,
            "recall_samples": config.judge.recall_samples,
            "models": list(collected),
            **config.score.to_dict(),
        },
        "data": artifacts.section(workdir, "data"),
        "judge": judge,
        "models": {
            model: _model_results(cases, by_metric[model], config)
            for model, cases in collected.items()
        },
        "comparisons": [
            entry
            for a, b in itertools.pairwise(collected)
            for entry in compare((a, by_metric[a]), (b, by_metric[b]), config)
        ],
    }
    scores = {
        "schema": SCHEMA,
        "models": {
            model: {f: _case_json(f, case, by_metric[model]) for f, case in cases.items()}
            for model, cases in collected.items()
        },
    }
    for other, samples in others:
        results.setdefault("judges", {})[other.name], cases = _further(
            other, counting(samples, other), joined, workdir, config
        )
        scores.setdefault("judges", {})[other.name] = cases
    return results, scores


def _further(
    judge: Judge, joined: Joined, first: Joined, workdir: Workdir, config: ConfigDict
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the entries of a further judge in results.json and scores.json."""
    collected = {model: collect(samples, config) for model, samples in joined.models.items()}
    by_metric = _estimates(joined, collected)
    entry = several.about(judge, joined, first, workdir, config)
    entry["models"] = {
        model: nested({name: metric(of_case, config) for name, of_case in of_model.items()})
        for model, of_model in by_metric.items()
    }
    judged = ("right", "recall", "recall_verified", "repeats")
    cases = {
        model: {
            f: {name: values for name in judged if (values := getattr(case, name))}
            for f, case in of_model.items()
        }
        for model, of_model in collected.items()
    }
    return entry, cases


def _estimates(
    joined: Joined, collected: Mapping[str, Mapping[str, CaseScore]]
) -> dict[str, Estimates]:
    """Returns the estimates of each model; bounds alone if verdicts of two versions are mixed."""
    by_metric = {model: estimates(cases) for model, cases in collected.items()}
    if joined.mixed:
        return {model: _without_values(of_model) for model, of_model in by_metric.items()}
    return by_metric


def _without_values(by_metric: Estimates) -> Estimates:
    """Returns the bounds of estimates alone: verdicts of several versions have no mean."""
    return {
        name: {f: estimate._replace(value=None) for f, estimate in of_case.items()}
        for name, of_case in by_metric.items()
    }


def _model_results(
    cases: Mapping[str, CaseScore], by_metric: Estimates, config: ConfigDict
) -> dict[str, Any]:
    counts = collections.Counter(kind for case in cases.values() for kind in case.kinds)
    rules = collections.Counter(rule for case in cases.values() for rule in case.rules)
    return {
        **nested({name: metric(of_case, config) for name, of_case in by_metric.items()}),
        "outcomes": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "answers": {rule: rules[rule] for rule in RULES if rules[rule]},
    }


def _case_json(fingerprint: str, case: CaseScore, by_metric: Estimates) -> dict[str, Any]:
    values = {name: of_case[fingerprint].value for name, of_case in by_metric.items()}
    fields = {name: value for name, value in vars(case).items() if name != "repeats" or value}
    return {**fields, "metrics": values}
