"""What the browser of cases needs: a small index at once, each case's texts when it is opened."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from ml_collections import ConfigDict

from mcr_jax import completion
from mcr_jax.cases import Case
from mcr_jax.config import judge_name
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.report.evidence import segments, visible

_ESCAPES = {
    ord(character): f"\\u{ord(character):04x}" for character in ("<", ">", "&", "\u2028", "\u2029")
}

Answers = Mapping[RowKey, Attempt | None]


def embed(value: Any) -> Markup:
    """JSON that is safe inside a <script> element: it holds no character HTML could act on."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def pack(value: Any) -> str:
    """JSON, compressed (zlib) and in base64: what the page unpacks when a case is opened."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def browser(
    ledger: Ledger, config: ConfigDict, scores: Mapping[str, Any], cases: Sequence[Case]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The index of cases and their packed details, in the same order: that of `cases`.

    Args:
      ledger: holds completions and the reasons judge's verdicts.
      config: reads `judge`.
      scores: scores.json.
      cases: texts; a scored case that is not among them is listed at the end by its fingerprint.
    """
    by_fingerprint = {case.fingerprint: case for case in cases}
    scored = {f: None for of_model in scores["models"].values() for f in of_model}
    order = [f for f in by_fingerprint if f in scored]
    order += [f for f in scored if f not in by_fingerprint]
    places = {fingerprint: place for place, fingerprint in enumerate(order)}
    details = [_case_detail(by_fingerprint.get(f), f) for f in order]
    for model, of_model in scores["models"].items():
        completions = ledger.answers(Scope("sample", model))
        reasons = ledger.answers(Scope("reasons", model, judge_name(config)))
        for fingerprint, place in places.items():
            score = of_model.get(fingerprint)
            shown = _model_detail(fingerprint, model, score, completions, reasons, config)
            details[place]["models"].append(shown)
    index = [
        {
            "id": detail["id"],
            "dx": detail["dx"],
            "tally": [_tally(m["samples"]) for m in detail["models"]],
        }
        for detail in details
    ]
    return index, [pack(detail) for detail in details]


def _case_detail(case: Case | None, fingerprint: str) -> dict[str, Any]:
    if case is None:
        unknown = "The text of this case is not in the data at hand."
        return {
            "id": fingerprint[:12],
            "dx": "unknown",
            "prompt": unknown,
            "source": "",
            "link": "",
            "statements": [],
            "models": [],
        }
    source = ", ".join(part for part in (case.journal, case.publication_date) if part)
    safe = case.article_link.startswith(("https://", "http://"))
    return {
        "id": visible(case.pmcid or fingerprint[:12]),
        "dx": visible(case.final_diagnosis.strip()),
        "prompt": visible(case.case_prompt.strip()),
        "source": visible(source),
        "link": case.article_link if safe else "",
        "statements": [visible(statement) for statement in case.statements],
        "models": [],
    }


def _model_detail(
    fingerprint: str,
    model: str,
    score: Mapping[str, Any] | None,
    completions: Answers,
    reasons: Answers,
    config: ConfigDict,
) -> dict[str, Any]:
    """Samples of one model on one case, and per judged sample which statements were found."""
    if score is None:
        return {"samples": [], "judged": []}
    samples, judged = [], []
    for sample, (kind, right) in enumerate(zip(score["kinds"], score["right"], strict=True)):
        row = RowKey(stage="sample", case=fingerprint, model=model, sample=sample)
        verdict = _verdict(reasons.get(row.judged("reasons", judge_name(config))))
        samples.append(
            {"kind": kind, "right": right, **_completion(completions.get(row), verdict["quotes"])}
        )
        if sample < config.judge.recall_samples:
            judged.append({"found": verdict["found"], "verified": verdict["verified"]})
    return {"samples": samples, "judged": judged}


def _verdict(attempt: Attempt | None) -> dict[str, list[Any]]:
    if attempt is None or attempt.outcome is not Outcome.OK:
        return {"found": [], "verified": [], "quotes": []}
    return attempt.verdict


def _completion(attempt: Attempt | None, quotes: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Trace in pieces of evidence, answer, and the whole text where there is not one answer."""
    if attempt is None:
        return {"trace": [], "answer": None, "text": "", "error": ""}
    parsed = completion.parse(attempt.text)
    pieces = segments(parsed.trace, quotes)
    return {
        "trace": [[visible(piece), numbers] for piece, numbers in pieces],
        "answer": None if parsed.answer is None else visible(parsed.answer),
        "text": "" if parsed.answer is not None else visible(attempt.text.strip()),
        "error": visible(attempt.error),
    }


def _tally(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many samples are right, wrong, unresolved."""
    rights = [sample["right"] for sample in samples]
    return [rights.count(True), rights.count(False), rights.count(None)]
