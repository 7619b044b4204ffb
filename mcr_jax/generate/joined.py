"""Completions of a model with the verdicts on them: joined by row, each text read once.

Scoring and the report go by this one join, so what is shown is what was counted.
"""

import collections
import contextlib
import dataclasses
import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax import completion
from mcr_jax.completion import Completion
from mcr_jax.config import judge_name
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope

JUDGED = ("diagnosis", "reasons")  # the stages of judging
UNNAMED = "not reported"  # stands for the model_version of a service that reports none


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One completion and the verdicts on it.

    Attributes:
      row: of the completion.
      outcome: of the newest attempt at it, None where there was none.
      error: one line for people where the outcome is not OK.
      said: its text, read; None where it has none.
      text: the whole text where it gives no answer, else "": the traces of all fill the memory.

    """

    row: RowKey
    outcome: Outcome | None
    error: str
    said: Completion | None
    text: str
    diagnosis: Attempt | None
    reasons: Attempt | None


class Joined(NamedTuple):
    """What the ledger holds on the models of a config.

    Attributes:
      models: name to its completions, by case and sample.
      versions: stage of judging to model_version to number of verdicts, all that there are.
      mixed: whether the judge reported several versions and config.judge.version names none: no
        verdict counts then, and no metric has a value.
      note: one sentence for people where some verdicts do not count, else "".
    """

    models: dict[str, list[Sample]]
    versions: dict[str, dict[str, int]]
    mixed: bool
    note: str


def read(attempt: Attempt | None, mode: str) -> Completion | None:
    """Reads the text of a completion; None where its outcome has no text.

    Args:
      attempt: the completion's.
      mode: config.score.answer.
    """
    if attempt is None or attempt.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return None
    return completion.parse(attempt.text, mode, ended=attempt.outcome is Outcome.OK)


def read_once(ledger: Ledger, attempt: Attempt | None, mode: str) -> Completion | None:
    """Reads a completion of `ledger` as `read` does; a second call gives the same object."""
    key = (attempt and attempt.id, mode)
    if key not in ledger.memo:
        ledger.memo[key] = read(attempt, mode)
    return ledger.memo[key]


def join(ledger: Ledger, config: ConfigDict) -> Joined:
    """Joins the completions of every model in config.sample.models with the verdicts that count.

    A command that joins again, with nothing written since, gets the same object.

    Args:
      ledger: of the completions and the verdicts.
      config: reads `sample.models`, `score.answer` and `judge`.

    Raises:
      McrError: a model has no completions, or the ledger cannot be read.
    """
    asked = (ledger.changes, *config.sample.models, config.score.answer, config.judge.to_json())
    if ledger.memo.get("joined", ("",))[0] != asked:
        ledger.memo["joined"] = asked, counting(read_all(ledger, config), config)
    return ledger.memo["joined"][1]


def read_all(ledger: Ledger, config: ConfigDict) -> dict[str, list[Sample]]:
    """As `join`, with the verdicts that do not count, too: model to its completions."""
    with uncollected():
        return {model: _samples(ledger, config, model) for model in config.sample.models}


def counting(models: dict[str, list[Sample]], config: ConfigDict) -> Joined:
    """What counts of `read_all`, by config.judge.version."""
    versions = _versions(sample for joined in models.values() for sample in joined)
    named = config.judge.version
    mixed = not named and len(_reported(versions)) > 1
    if named or mixed:
        models = {
            model: [_counting(sample, named) for sample in joined]
            for model, joined in models.items()
        }
    return Joined(models, versions, mixed, _note(versions, named, mixed))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keeps Python from looking for garbage in the meantime.

    It would look through all rows again and again while they are made, and they hold no cycles.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _samples(ledger: Ledger, config: ConfigDict, model: str) -> list[Sample]:
    attempts = ledger.answers(Scope("sample", model))
    if not attempts:
        raise McrError(f"{ledger.path}: no completions of model {model!r}; run `mcr sample` first")
    judge, mode = judge_name(config), config.score.answer
    diagnoses, reasons = (
        _by_place(ledger.answers(Scope(stage, model, judge), config.judge.version))
        for stage in JUDGED
    )
    joined = []
    for at, row in sorted((_place(row), row) for row in attempts):
        attempt = attempts.pop(row)
        said = read_once(ledger, attempt, mode)
        answered = said is not None and said.answer is not None
        traced = said is not None and said.trace and row.sample < config.judge.recall_samples
        joined.append(
            Sample(
                row=row,
                outcome=attempt and attempt.outcome,
                error=attempt.error if attempt else "",
                said=said,
                text=attempt.text if attempt and not answered else "",
                diagnosis=diagnoses.get(at) if answered else None,
                reasons=reasons.get(at) if traced else None,
            )
        )
    return joined


def _versions(joined: Iterable[Sample]) -> dict[str, dict[str, int]]:
    counts = {stage: collections.Counter() for stage in JUDGED}
    for sample in joined:
        for stage, verdict in (("diagnosis", sample.diagnosis), ("reasons", sample.reasons)):
            if verdict is not None and verdict.outcome is Outcome.OK:
                counts[stage][verdict.model_version or UNNAMED] += 1
    return {stage: dict(sorted(count.items())) for stage, count in counts.items()}


def _reported(versions: Mapping[str, Mapping[str, int]]) -> collections.Counter:
    """Verdicts of both stages by version; none reported counts as a version of its own."""
    total = collections.Counter()
    for counts in versions.values():
        total.update(counts)
    return total


def _counting(sample: Sample, version: str) -> Sample:
    """`sample` with the verdicts of that version only; "" is none."""
    kept = {
        stage: verdict if verdict is not None and verdict.model_version == version != "" else None
        for stage, verdict in (("diagnosis", sample.diagnosis), ("reasons", sample.reasons))
    }
    return dataclasses.replace(sample, **kept)


def _note(versions: Mapping[str, Mapping[str, int]], named: str, mixed: bool) -> str:
    """One sentence for people where some verdicts do not count; else ""."""
    reported = _reported(versions)
    listed = ", ".join(f"{_shown(name)}: {count}" for name, count in reported.most_common())
    if mixed:
        return (
            f"the judge reported several versions ({listed} verdicts), so no metric has a value; "
            "set config.judge.version to the one that counts"
        )
    total = sum(count for counts in versions.values() for count in counts.values())
    if named and (others := total - reported[named]):
        return (
            f"{others} of {total} verdicts are not of config.judge.version={named} and count as "
            f"unresolved (reported: {listed})"
        )
    return ""


def _shown(version: str) -> str:
    """A service's word for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in version)


def _by_place(answers: Mapping[RowKey, Attempt | None]) -> dict[tuple, Attempt | None]:
    return {_place(row): attempt for row, attempt in answers.items()}


def _place(row: RowKey) -> tuple[str, int, int]:
    """Where a completion and its verdicts meet."""
    return row.case, row.sample, row.repeat
