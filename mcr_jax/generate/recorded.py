"""Completions in a file: read as a `Generator`, and written from a ledger.

Each line is a JSON object: "case" (its fingerprint or its pmcid), "sample" (from 0; the position
among the case's lines unless given), and "text", or "reasoning" with "answer". "outcome" is OK
unless it says TRUNCATED, BLOCKED, MALFORMED or prompt_too_long.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax import artifacts, disk
from mcr_jax.cases import Case
from mcr_jax.completion import render
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.generate.ledger import Ledger, Scope

_OUTCOMES = tuple(outcome for outcome in Outcome if outcome.settled)
_ROW = {
    "case": str,
    "sample?": artifacts.Number(0, 1e9),
    "text?": str,
    "reasoning?": str,
    "answer?": str,
    "outcome?": str,
    "model_version?": str,
}


class RecordedCompletions:
    """Replies with the completions of a file; a missing one gets no reply.

    Attributes:
      identity: "file/" and the SHA-256 of the file.
    """

    def __init__(self, path: Path, cases: Sequence[Case]):
        """Reads the whole file; lines of other cases are skipped.

        Raises:
          McrError: it cannot be read, a line is of another form, two lines are of one sample, or no
            line is of a case in `cases`.
        """
        try:
            content = path.read_bytes()
            lines = content.decode("utf-8-sig").split("\n")
        except OSError as error:
            raise McrError(f"{path}: cannot read completions: {error.strerror}") from error
        except ValueError as error:
            raise McrError(f"{path}: cannot read completions: {error}") from error
        self.identity = f"file/{hashlib.sha256(content).hexdigest()}"
        fingerprints = {case.fingerprint: case.fingerprint for case in cases}
        fingerprints |= {case.pmcid: case.fingerprint for case in cases if case.pmcid}
        self._replies: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            row = _row(line, place)
            case = fingerprints.get(row["case"])
            if case is None:
                continue
            of_case = self._replies[case]
            sample = row.get("sample", len(of_case))
            if sample in of_case:
                raise McrError(f"{place}: sample {sample} of case {row['case'][:40]} stands twice")
            of_case[sample] = _answer(row, place)
        if not self._replies:
            raise McrError(
                f"{path}: no completion is of a case of this dataset and split; give each line a "
                'field "case" with the fingerprint or the pmcid of a case'
            )

    def found(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Returns how many wanted completions the file has, and the most of one case."""
        of_cases = [
            sum(i in self._replies.get(request.key, {}) for i in range(request.n))
            for request in requests
        ]
        return sum(of_cases), max(of_cases, default=0)

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields the completions that the file has."""
        for request in requests:
            of_case: Mapping[int, dict[str, Any]] = self._replies.get(request.key, {})
            for index in request.wanted:
                if index in of_case:
                    yield Reply(key=request.key, index=index, **of_case[index])


def write_completions(
    ledger: Ledger, model: str, cases: Sequence[Case], path: Path
) -> tuple[int, int]:
    """Writes the completions of one model as a file that `RecordedCompletions` reads, atomically.

    Args:
      ledger: holds the completions.
      model: its name in the ledger.
      cases: give the field "pmcid"; a case that is not among them has none.
      path: replaced if it is there.

    Returns:
      Number of completions written, and of those that are wanted and not there: never attempted,
      or failed calls, which are no completion.

    Raises:
      McrError: the model has no completion, the ledger cannot be read, or the file not be written.
    """
    pmcids = {case.fingerprint: case.pmcid for case in cases}
    answers = ledger.answers(Scope("sample", model))
    there = {row: a for row, a in answers.items() if a is not None and a.outcome.settled}
    if not there:
        raise McrError(f"{ledger.path}: no completions of model {model!r}; run `mcr sample` first")
    with disk.atomic_write(path) as file:
        for row, attempt in there.items():
            line = {"case": row.case, "pmcid": pmcids.get(row.case, ""), "sample": row.sample}
            line |= {"text": attempt.text, "outcome": attempt.outcome.value}
            line["model_version"] = attempt.model_version
            kept = {name: value for name, value in line.items() if value or name != "pmcid"}
            file.write((json.dumps(kept, ensure_ascii=False) + "\n").encode())
    return len(there), len(answers) - len(there)


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise McrError(f"{place}: not JSON: {error}") from error
    fault = artifacts.wrong(row, _ROW)
    if not fault and not isinstance(row.get("sample", 0), int):
        fault = "field sample is not an integer"
    if fault:
        raise McrError(f"{place}: {fault}")
    return row


def _answer(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    outcome = row.get("outcome", "OK")
    if outcome not in _OUTCOMES:
        raise McrError(f"{place}: field outcome is none of {', '.join(_OUTCOMES)}")
    if "text" not in row and "answer" not in row and outcome == Outcome.OK:
        raise McrError(f"{place}: field text is missing, and so is answer")
    text = row.get("text")
    if text is None:
        text = render(row.get("reasoning", ""), row["answer"]) if "answer" in row else ""
    known = {"outcome": Outcome(outcome), "model_version": row.get("model_version", "")}
    return {**known, "text": text, "error": "" if outcome == Outcome.OK else "as recorded"}
