"""Data of the case browser: a small index, and the texts of each case, compressed until opened."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from ml_collections import ConfigDict

from mcr_jax import artifacts
from mcr_jax.cases import Case
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import Joined, Sample
from mcr_jax.generate.ledger import Attempt, damaged
from mcr_jax.report.evidence import segments, visible

_ESCAPES = {
    ord(character): f"\\u{ord(character):04x}" for character in ("<", ">", "&", "\u2028", "\u2029")
}


def embed(value: Any) -> Markup:
    """Encodes JSON for a <script> element, with every character escaped that HTML acts on."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def pack(value: Any) -> str:
    """Encodes JSON as zlib in base64; the page unpacks it when the reader opens a case."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def browser(
    joined: Joined, config: ConfigDict, scores: Mapping[str, Any], cases: Sequence[Case]
) -> tuple[list[dict[str, Any]], list[dict[str, Any] | str]]:
    """Returns the index of cases and their details, both in the order of `cases`.

    Details of the first case are plain, the others packed: a browser that prints from its command
    line prints before it has unpacked anything.

    Args:
      joined: the completions and their verdicts.
      config: reads `judge`.
      scores: scores.json; the models of each case come in its order.
      cases: texts; a scored case without text comes last, under its fingerprint.
    """
    by_fingerprint = {case.fingerprint: case for case in cases}
    scored = {f: None for of_model in scores["models"].values() for f in of_model}
    order = [f for f in by_fingerprint if f in scored]
    order += [f for f in scored if f not in by_fingerprint]
    by_case = {model: _by_case(samples) for model, samples in joined.models.items()}
    index: list[dict[str, Any]] = []
    details: list[dict[str, Any] | str] = []
    for fingerprint in order:  # one at a time: unpacked, the texts of all take much memory
        detail = _case_detail(by_fingerprint.get(fingerprint), fingerprint)
        for model, of_model in scores["models"].items():
            samples = by_case.get(model, {}).get(fingerprint, {})
            shown = _model_detail(of_model.get(fingerprint), samples, config)
            detail["models"].append(shown)
        tally = [_tally(model["samples"]) for model in detail["models"]]
        index.append({"id": detail["id"], "dx": detail["dx"], "tally": tally})
        details.append(pack(detail) if details else detail)
    return index, details


def _by_case(samples: Sequence[Sample]) -> dict[str, dict[int, Sample]]:
    by_case: dict[str, dict[int, Sample]] = {}
    for sample in samples:
        by_case.setdefault(sample.row.case, {})[sample.row.sample] = sample
    return by_case


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
    score: Mapping[str, Any] | None, samples: Mapping[int, Sample], config: ConfigDict
) -> dict[str, Any]:
    """Returns the samples of one model on one case, and statements found per judged sample."""
    shown: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    if score is None:
        return {"samples": shown, "judged": judged}
    for index, (kind, right) in enumerate(zip(score["kinds"], score["right"], strict=True)):
        sample = samples.get(index)
        verdict = _verdict(sample and sample.reasons)
        # A quote too short to verify is no evidence, even if it stands in the trace.
        checked = zip(verdict["quotes"], verdict["verified"], strict=False)
        evidence = [quotes if verified else [] for quotes, verified in checked]
        shown.append({"kind": kind, "right": right, **_completion(sample, evidence)})
        if index < config.judge.recall_samples:
            judged.append({"found": verdict["found"], "verified": verdict["verified"]})
    return {"samples": shown, "judged": judged}


def _verdict(attempt: Attempt | None) -> dict[str, list[Any]]:
    """Returns the verdict of a reasons judge. Raises McrError if it has another form."""
    if attempt is None or attempt.outcome is not Outcome.OK:
        return {"found": [], "verified": [], "quotes": []}
    form = {"found": [bool], "verified": [bool], "quotes": [[str]]}
    if wrong := artifacts.wrong(attempt.verdict, form):
        raise McrError(damaged(attempt, f"is of another form: {wrong}"))
    return attempt.verdict


def _completion(sample: Sample | None, evidence: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns the answer, and the trace cut at its evidence; without an answer, the whole text."""
    if sample is None:
        return {"trace": [], "whole": False, "answer": None, "rule": None, "error": ""}
    said = sample.said
    answer = said and said.answer
    pieces = segments(sample.text.strip() if answer is None else said.trace, evidence)
    return {
        "trace": [[visible(piece), numbers] for piece, numbers in pieces],
        "whole": answer is None,
        "answer": None if answer is None else visible(answer),
        "rule": said and said.rule,
        "error": visible(sample.error),
    }


def _tally(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Counts right, wrong and unresolved samples."""
    rights = [sample["right"] for sample in samples]
    return [rights.count(True), rights.count(False), rights.count(None)]
