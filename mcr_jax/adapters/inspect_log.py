"""Writes completions and verdicts of one model as a log of inspect_ai, without inspect_ai.

In: a workdir's ledger, and its cases. Out: FILE.eval, a zip file of JSON as inspect_ai writes since
version 2 of its format, or FILE.json, the same as one object. A case is a sample, a completion an
epoch of it. Two scorers: `diagnosis`, 1 or 0, and `reasons`, recall and verified recall. What is
unresolved is NaN, which inspect_ai leaves out of its means as unscored.

The metrics in the log are those of results.json: `tests/adapters` read both back with inspect_ai.
"""

import collections
import datetime
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ml_collections import ConfigDict

from mcr_jax import __version__, disk
from mcr_jax.adapters.grading import TASK, question
from mcr_jax.cases import Case
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import Joined, Sample, join
from mcr_jax.generate.ledger import Attempt, Ledger, Scope
from mcr_jax.judge_specs import headline
from mcr_jax.prompts import Prompt
from mcr_jax.score.results import NOTICE, estimates, metric
from mcr_jax.score.samples import ANSWERED, NO_ANSWER, collect, decided
from mcr_jax.workdir import digest

FORMATS = (".eval", ".json")
DIAGNOSIS, REASONS = "diagnosis", "reasons"  # scorers
FOUND, VERIFIED = "reasoning_recall", "reasoning_recall_verified"  # values of the second
RECALLS = (FOUND, VERIFIED)
_VERSION = 2  # of the format
_PROVIDER = "none"  # of the model's name: inspect_ai wants one, and this cannot be called
_STOPS = {Outcome.OK: "stop", Outcome.TRUNCATED: "max_tokens", Outcome.BLOCKED: "content_filter"}
_REASONS = {NO_ANSWER: "invalid_response_format", Outcome.BLOCKED.value: "refusal"}
_SUMMARY_CHARS = 1000  # of a text in the list of samples


def diagnosis_score(sample: Sample) -> dict[str, Any]:
    """Returns the Score of the diagnosis: 1 right, 0 wrong, NaN unresolved."""
    found = decided(sample)
    failed = "grader_failed" if found.kind == ANSWERED and found.right is None else None
    return {
        "value": math.nan if found.right is None else float(found.right),
        "answer": sample.said.answer if sample.said else None,
        "explanation": _explanation(sample.diagnoses, sample.error),
        "reason": failed or _REASONS.get(found.kind),
        "metadata": {"kind": found.kind, "rule": sample.said.rule if sample.said else None},
    }


def reasons_score(sample: Sample, config: ConfigDict) -> dict[str, Any]:
    """Returns the Score of the trace: recall and verified recall, NaN while unresolved.

    Completions beyond config.judge.recall_samples are not judged for recall: NaN as well.
    """
    if sample.row.sample >= config.judge.recall_samples:
        return {"value": {FOUND: math.nan, VERIFIED: math.nan}, "reason": "not_sampled_for_recall"}
    recall = decided(sample).recall
    values = {FOUND: recall.found, VERIFIED: recall.verified}
    failed = sample.said is not None and recall.found is None
    return {
        "value": {name: math.nan if v is None else v for name, v in values.items()},
        "explanation": _explanation(sample.recalls, sample.error),
        "reason": "grader_failed" if failed else None,
    }


def _explanation(verdicts: Sequence[Attempt | None], error: str) -> str | None:
    """Returns the judge's replies, one per repeat, each with its error if it has one."""
    given = [part for v in verdicts if v is not None for part in (v.error, v.text) if part]
    return "\n".join(given) or error or None


def write_log(
    ledger: Ledger,
    config: ConfigDict,
    cases: Sequence[Case],
    prompt: Prompt,
    model: str,
    path: Path,
    data: Mapping[str, Any],
) -> dict[str, int]:
    """Writes the log, atomically.

    Args:
      ledger: holds completions and verdicts.
      config: a resolved config, as for scoring.
      cases: the evaluated cases.
      prompt: the one of the completions.
      model: its name in the ledger.
      path: ends in one of FORMATS; replaced if it is there.
      data: facts of the dataset, for the log.

    Returns:
      Counts: "samples" in the log, and "missing", which were never attempted.

    Raises:
      McrError: a completion is of a case that is not among `cases`, the model has no completions,
        the verdicts are of several versions, or a file cannot be read or written.
      UsageError: `path` ends in something else.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the name of a log ends in {' or '.join(FORMATS)}")
    joined, logged_as = join(ledger, config), f"{_PROVIDER}/{model}"
    if joined.mixed:  # no mean of them is a number, and inspect_ai would compute one
        raise McrError(f"the log would mix verdicts: {joined.note}")
    samples, attempts = joined.models[model], ledger.answers(Scope("sample", model))
    known = {case.fingerprint: question(case, prompt) for case in cases}
    if strange := sum(sample.row.case not in known for sample in samples):
        raise McrError(
            f"{strange} of {len(samples)} completions are of cases that split "
            f"{config.data.eval_split} of the dataset does not hold: build the dataset that they "
            "were sampled on"
        )
    there = [sample for sample in samples if sample.outcome is not None]
    written = ledger.path.stat().st_mtime  # the same ledger gives the same log
    created = datetime.datetime.fromtimestamp(written, datetime.UTC).isoformat()
    header = {
        "version": _VERSION,
        "status": "success",
        "eval": _spec(config, known, samples, logged_as, created, data),
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": _results(joined, model, config, len(there)),
        "stats": {
            "started_at": created,
            "completed_at": created,
            "model_usage": {logged_as: _usage(attempts[sample.row] for sample in there)},
        },
    }
    logged = (
        _sample(sample, attempts[sample.row], known[sample.row.case], config, logged_as)
        for sample in there
    )
    with disk.atomic_write(path) as file:
        if path.suffix == ".json":
            file.write(_json({**header, "samples": list(logged)}))
        else:
            _zip(file, header, logged)
    return {"samples": len(there), "missing": len(samples) - len(there)}


def _zip(file: BinaryIO, header: Mapping[str, Any], samples: Iterator[dict[str, Any]]) -> None:
    start = {name: header[name] for name in ("version", "eval", "plan")}
    summaries = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("_journal/start.json", _json(start))
        for sample in samples:
            parts.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", _json(sample))
            summaries.append(_summary(sample))
        parts.writestr("summaries.json", _json(summaries))
        parts.writestr("header.json", _json(header))


def _json(value: Any) -> bytes:
    """Returns JSON with the constant NaN, as inspect_ai writes it."""
    return json.dumps(value, ensure_ascii=False).encode()


def _spec(
    config: ConfigDict,
    known: Mapping[str, Any],
    samples: Sequence[Sample],
    model: str,
    created: str,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    ids = list(dict.fromkeys(sample.row.case for sample in samples))
    identity = digest([model, ids, headline(config).name, config.seed, created])
    epochs = 1 + max(sample.row.sample for sample in samples)
    return {
        "eval_id": identity[:22],
        "run_id": identity[22:44],
        "task_id": digest(ids)[:22],
        "created": created,
        "task": TASK,
        "task_version": 0,
        "task_args": {"prompt": config.prompt, "split": config.data.eval_split},
        "dataset": {"name": TASK, "samples": len(ids), "sample_ids": ids, "shuffled": False},
        "model": model,
        "config": {"epochs": epochs, "epochs_reducer": ["mean"]},
        "packages": {"mcr_jax": __version__},
        "metadata": {
            "notice": NOTICE,
            "written_by": "mcr export-log",
            "judge": headline(config).name,
            "data": dict(data),
        },
        "scorers": [
            {"name": DIAGNOSIS, "metrics": [{"name": "inspect_ai/accuracy"}]},
            {"name": REASONS, "metrics": {v: [{"name": "inspect_ai/mean"}] for v in RECALLS}},
        ],
    }


def _results(joined: Joined, model: str, config: ConfigDict, there: int) -> dict[str, Any]:
    """Returns the metrics of results.json as EvalResults; one without a value is left out."""
    samples, scores = joined.models[model], []
    for name, of_case in estimates(collect(samples, config)).items():
        found = metric(of_case, config)
        of, _, k = name.partition("@")
        short = "accuracy" if k else "mean"
        entry = {"name": short, "value": found["value"], "metadata": found}
        scores.append(
            {
                "name": DIAGNOSIS if k else of,
                "scorer": DIAGNOSIS if k else REASONS,
                "reducer": f"pass_at_{k}" if k not in ("", "1") else "mean",
                "scored_samples": found["resolved"],
                "unscored_samples": found["total"] - found["resolved"],
                "metrics": {} if found["value"] is None else {short: entry},
            }
        )
    counts = {"total_samples": len(samples), "completed_samples": there}
    return {**counts, "scores": scores, "metadata": {"note": joined.note} if joined.note else None}


def _sample(
    sample: Sample, attempt: Attempt, asked: Mapping[str, Any], config: ConfigDict, model: str
) -> dict[str, Any]:
    answer = {"role": "assistant", "content": attempt.text, "source": "generate", "model": model}
    stop = _STOPS.get(attempt.outcome, "unknown")
    output = {
        "model": attempt.model_version or model,
        "choices": [{"message": answer, "stop_reason": stop}],
        "completion": attempt.text,
        "usage": _usage([attempt]),
        "time": attempt.seconds,
        "error": attempt.error or None,
    }
    failed = {"message": attempt.error, "traceback": "", "traceback_ansi": ""}
    return {
        "id": asked["id"],
        "epoch": sample.row.sample + 1,
        "input": asked["messages"],
        "target": asked["target"],
        "messages": [*asked["messages"], answer],
        "output": output,
        "scores": {DIAGNOSIS: diagnosis_score(sample), REASONS: reasons_score(sample, config)},
        "metadata": asked["metadata"],
        "model_usage": {model: output["usage"]},
        "error": None if attempt.outcome.settled else failed,
    }


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry of a sample in the list that the viewer shows first."""
    shown = [{**m, "content": m["content"][:_SUMMARY_CHARS]} for m in sample["input"]]
    scores = {
        name: {key: text for key, text in score.items() if key != "explanation"}
        for name, score in sample["scores"].items()
    }
    kept = ("id", "epoch", "target", "model_usage")
    return {
        **{name: sample[name] for name in kept},
        "input": shown,
        "scores": scores,
        "completed": True,
        "message_count": len(sample["messages"]),
    }


def _usage(attempts: Any) -> dict[str, int]:
    totals: collections.Counter[str] = collections.Counter()
    for attempt in attempts:
        usage = attempt.usage
        totals["input_tokens"] += usage.prompt - usage.cached
        totals["input_tokens_cache_read"] += usage.cached
        totals["output_tokens"] += usage.output
        totals["total_tokens"] += usage.prompt + usage.output
    return dict(totals)
