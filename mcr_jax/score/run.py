"""The scoring stage: completions and verdicts in the ledger to scores.json and results.json.

The ledger is all it needs, so `verify` can repeat it offline. The same ledger and config give the
same bytes.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from mcr_jax.config import judge_name
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.score import accuracy, recall, statistics
from mcr_jax.score.accuracy import Estimate
from mcr_jax.score.compare import Estimates, compare
from mcr_jax.workdir import Workdir

SCHEMA = 1
NOTICE = "Research use, not for patient care"
RECALLS = ("reasoning_recall", "reasoning_recall_verified")


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """What one model did on one case.

    Attributes:
      kinds: how each sample ended, by sample index.
      rights: whether each sample is right, None while unresolved.
      recalls: recall of each sample judged for it, from sample 0 on.
    """

    kinds: tuple[str, ...]
    rights: tuple[bool | None, ...]
    recalls: tuple[recall.Shares, ...]


def score(workdir: Workdir, config: ConfigDict) -> dict[str, Any]:
    """Scores every model in `config.sample.models` and writes scores.json and results.json.

    Args:
      workdir: holds the ledger; its manifest's sections "data" and "judge" go into the results.
      config: a resolved config; reads `name`, `seed`, `sample.models`, `judge` and `score`.

    Returns:
      What results.json holds, schema 1: per model "accuracy" by k, the two recalls and "outcomes";
      "comparisons" of consecutive models; "data", "judge", "config" and "notice".

    Raises:
      McrError: a model has no completions, or the ledger holds a verdict of another form.
    """
    results, scores = compute(workdir, config)
    workdir.write_json(workdir.scores, scores)
    workdir.write_json(workdir.results, results)
    return results


def verify(workdir: Workdir, config: ConfigDict) -> list[str]:
    """Recomputes results.json and scores.json from the ledger.

    Returns:
      One line per value that differs: file, path, what is stored, what was recomputed. Empty when
      all agree; numbers agree when they do to nine digits, as processors may sum differently.

    Raises:
      McrError: a file is missing or broken, or the ledger cannot be scored.
    """
    fresh = compute(workdir, config)
    stored = [workdir.read_json(path) for path in (workdir.results, workdir.scores)]
    lines = []
    for path, old, new in zip((workdir.results, workdir.scores), stored, fresh, strict=True):
        lines += [f"{path.name}: {line}" for line in _differences(old, new, "")]
    return lines


def collect(ledger: Ledger, config: ConfigDict, model: str) -> dict[str, CaseScore]:
    """Joins a model's completions with their verdicts, case by case.

    Args:
      ledger: where both are.
      config: reads `judge`, for its name and the number of samples judged for recall.
      model: the model's name.

    Returns:
      Case fingerprint to score, in the order of the fingerprints.

    Raises:
      McrError: the model has no completions, or a verdict is of another form.
    """
    judge = judge_name(config)
    samples = ledger.answers(Scope("sample", model))
    if not samples:
        raise McrError(f"{ledger.path}: no completions of model {model!r}; run `mcr sample` first")
    diagnoses = ledger.answers(Scope("diagnosis", model, judge))
    reasons = ledger.answers(Scope("reasons", model, judge))
    by_case = collections.defaultdict(list)
    for row in sorted(samples):
        by_case[row.case].append(row)
    collected = {}
    for case, rows in by_case.items():
        kinds = [accuracy.kind(samples[row]) for row in rows]
        rights = [
            accuracy.right(kind, diagnoses.get(row.judged("diagnosis", judge)))
            for kind, row in zip(kinds, rows, strict=True)
        ]
        recalls = [
            recall.sample_recall(samples[row], reasons.get(row.judged("reasons", judge)))
            for row in rows
            if row.sample < config.judge.recall_samples
        ]
        collected[case] = CaseScore(tuple(kinds), tuple(rights), tuple(recalls))
    return collected


def estimates(cases: Mapping[str, CaseScore]) -> dict[str, dict[str, Estimate]]:
    """Every metric of one model, case by case: "accuracy@K" as far as samples go, and recalls."""
    most = max(len(case.kinds) for case in cases.values())
    found: dict[str, dict[str, Estimate]] = {
        f"accuracy@{k}": {f: accuracy.case_accuracy(case.rights, k) for f, case in cases.items()}
        for k in accuracy.KS
        if k <= most
    }
    for position, metric in enumerate(RECALLS):
        found[metric] = {
            f: recall.case_recall([shares[position] for shares in case.recalls])
            for f, case in cases.items()
        }
    return found


def metric(cases: Mapping[str, Estimate], config: ConfigDict) -> dict[str, Any]:
    """One METRIC of results.json: the mean over resolved cases, its interval and its coverage."""
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


def compute(workdir: Workdir, config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """What results.json and scores.json are to hold, from the ledger and the manifest alone."""
    models = list(config.sample.models)
    with Ledger(workdir.ledger, readonly=True) as ledger:
        collected = {model: collect(ledger, config, model) for model in models}
        verdicts = _verdict_counts(ledger, models, judge_name(config))
    by_metric = {model: estimates(cases) for model, cases in collected.items()}
    manifest = workdir.read_json(workdir.manifest) if workdir.manifest.exists() else {}
    results = {
        "schema": SCHEMA,
        "notice": NOTICE,
        "config": {
            "name": config.name,
            "seed": config.seed,
            "samples": config.sample.n,
            "recall_samples": config.judge.recall_samples,
            **config.score.to_dict(),
        },
        "data": manifest.get("data", {}),
        "judge": {**manifest.get("judge", {}), "name": judge_name(config), "verdicts": verdicts},
        "models": {
            model: _model_results(collected[model], by_metric[model], config) for model in models
        },
        "comparisons": [
            entry
            for a, b in itertools.pairwise(models)
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
    return results, scores


def _model_results(
    cases: Mapping[str, CaseScore], by_metric: Estimates, config: ConfigDict
) -> dict[str, Any]:
    metrics = {name: metric(of_case, config) for name, of_case in by_metric.items()}
    counts = collections.Counter(kind for case in cases.values() for kind in case.kinds)
    return {
        "accuracy": {
            name.removeprefix("accuracy@"): found
            for name, found in metrics.items()
            if name not in RECALLS
        },
        **{name: metrics[name] for name in RECALLS},
        "outcomes": {kind: counts[kind] for kind in accuracy.KINDS if counts[kind]},
    }


def _case_json(fingerprint: str, case: CaseScore, by_metric: Estimates) -> dict[str, Any]:
    return {
        "kinds": list(case.kinds),
        "right": list(case.rights),
        "recall": [shares.found for shares in case.recalls],
        "recall_verified": [shares.verified for shares in case.recalls],
        "metrics": {name: of_case[fingerprint].value for name, of_case in by_metric.items()},
    }


def _verdict_counts(ledger: Ledger, models: list[str], judge: str) -> dict[str, dict[str, int]]:
    """How many verdicts were wanted of the judge and how many there are, over all models."""
    counts = {}
    for stage in ("diagnosis", "reasons"):
        rows = [a for model in models for a in ledger.answers(Scope(stage, model, judge)).values()]
        settled = sum(a is not None and a.outcome is Outcome.OK for a in rows)
        counts[stage] = {"wanted": len(rows), "settled": settled}
    return counts


def _differences(stored: Any, fresh: Any, path: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(fresh, dict):
        for key in sorted(stored.keys() | fresh.keys()):
            at = f"{path}.{key}" if path else key
            yield from _differences(stored.get(key, "absent"), fresh.get(key, "absent"), at)
    elif isinstance(stored, list) and isinstance(fresh, list) and len(stored) == len(fresh):
        for position, pair in enumerate(zip(stored, fresh, strict=True)):
            yield from _differences(*pair, f"{path}[{position}]")
    elif not _agree(stored, fresh):
        yield f"{path} is {stored!r}, recomputed {fresh!r}"


def _agree(stored: Any, fresh: Any) -> bool:
    numbers = (int, float)
    if isinstance(stored, bool) or isinstance(fresh, bool):
        return stored is fresh
    if isinstance(stored, numbers) and isinstance(fresh, numbers):
        return math.isclose(stored, fresh, rel_tol=1e-9, abs_tol=1e-12)
    return stored == fresh
