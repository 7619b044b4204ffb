"""Join of completions with their verdicts by row; each text is parsed once.

Scoring and the report use the same join, so the report shows exactly what was scored.
"""

import collections
import contextlib
import dataclasses
import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mcr_jax import completion, judge_specs, model_specs
from mcr_jax.completion import Completion
from mcr_jax.errors import McrError, printable
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judge_specs import STAGES, Judge

UNNAMED = "not reported"  # model_version of a service that reports none


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One completion and its verdicts.

    Attributes:
      row: row of the completion.
      outcome: outcome of the attempt that counts, None without an attempt.
      error: one line for people where the outcome is not OK.
      said: the parsed text; None without text.
      text: the whole text if it gives no answer, else "" to save memory.
      diagnosis: the attempt at the diagnosis verdict, None without an attempt or without an answer.
      reasons: the same for the reasons verdict; None also beyond config.judge.recall_samples.
      repeats: the attempts at both verdicts, repeated: one pair for each repeat after the first.
    """

    row: RowKey
    outcome: Outcome | None
    error: str
    said: Completion | None
    text: str
    diagnosis: Attempt | None
    reasons: Attempt | None
    repeats: tuple[tuple[Attempt | None, Attempt | None], ...] = ()

    @property
    def diagnoses(self) -> tuple[Attempt | None, ...]:
        """Attempts at the diagnosis verdict, one per repeat."""
        return (self.diagnosis, *(diagnosis for diagnosis, _ in self.repeats))

    @property
    def recalls(self) -> tuple[Attempt | None, ...]:
        """Attempts at the reasons verdict, one per repeat."""
        return (self.reasons, *(reasons for _, reasons in self.repeats))


class Joined(NamedTuple):
    """Completions of the models of a config, with the verdicts of one judge.

    Attributes:
      models: completions of each model by name, in the order of case and sample.
      versions: number of all verdicts by stage of judging and model_version.
      mixed: True if a model of the judge reported several versions and none is named as the one
        that counts. Then no verdict counts, and no metric has a value.
      note: one sentence for people if some verdicts do not count, else "".
    """

    models: dict[str, list[Sample]]
    versions: dict[str, dict[str, int]]
    mixed: bool
    note: str


def read(attempt: Attempt | None, mode: str) -> Completion | None:
    """Parses the text of a completion; None if its outcome has no text.

    Args:
      attempt: attempt at the completion.
      mode: config.score.answer.
    """
    if attempt is None or attempt.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return None
    return completion.parse(attempt.text, mode, ended=attempt.outcome is Outcome.OK)


def read_once(ledger: Ledger, attempt: Attempt | None, mode: str) -> Completion | None:
    """Computes `read` for a completion of `ledger`; later calls return the same object."""
    key = attempt and (attempt.id, attempt.outcome, hash(attempt.text), mode)
    if key not in ledger.memo:
        ledger.memo[key] = read(attempt, mode)
    return ledger.memo[key]


def join(ledger: Ledger, config: ConfigDict) -> Joined:
    """Joins the completions of every model in config.sample.models with the headline's verdicts.

    As long as the ledger does not change, later calls return the same object: do not modify it.

    Args:
      ledger: holds the completions and the verdicts.
      config: provides `sample.models`, `score.answer` and `judge`.

    Raises:
      McrError: a model has no completions, or the ledger cannot be read.
    """
    inputs = (ledger.changes, *config.sample.models, config.score.answer, config.judge.to_json())
    if ledger.memo.get("joined", ("",))[0] != inputs:
        judge = judge_specs.headline(config)
        ledger.memo["joined"] = inputs, counting(read_all(ledger, config, judge), judge)
    return ledger.memo["joined"][1]


def read_all(ledger: Ledger, config: ConfigDict, judge: Judge) -> dict[str, list[Sample]]:
    """Joins as `join`, keeping the verdicts of `judge` that do not count: completions by model."""
    with uncollected():
        return {
            model: _samples(ledger, config, model, judge) for model in model_specs.names(config)
        }


def rejudged(
    ledger: Ledger, config: ConfigDict, judge: Judge, models: Mapping[str, list[Sample]]
) -> dict[str, list[Sample]]:
    """Joins as `read_all` for another judge of the same completions, which are not read again."""
    with uncollected():
        found = {}
        for model, samples in models.items():
            verdicts = _Verdicts(ledger, config, model, judge)
            found[model] = [
                dataclasses.replace(sample, **verdicts.on(sample.row, sample.said))
                for sample in samples
            ]
        return found


def counting(models: dict[str, list[Sample]], judge: Judge) -> Joined:
    """Drops the verdicts of `read_all` that do not count by the versions of `judge`."""
    versions = _versions(sample for samples in models.values() for sample in samples)
    mixed, notes = False, []
    for stages in judge.parts:  # the models of a pair have one version each
        reported = sum((collections.Counter(versions[s]) for s in stages), collections.Counter())
        named = judge.versions[stages[0]]
        of_part = not named and len(reported) > 1
        mixed |= of_part
        notes.append(_note(reported, named, of_part))
    if mixed or any(judge.versions.values()):
        models = {
            model: [_counting(sample, judge.versions, mixed) for sample in samples]
            for model, samples in models.items()
        }
    return Joined(models, versions, mixed, "; ".join(filter(None, notes)))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Suspends Python's garbage collector.

    It would traverse all rows again and again while they are created, and they hold no cycles.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _samples(ledger: Ledger, config: ConfigDict, model: str, judge: Judge) -> list[Sample]:
    attempts = ledger.answers(Scope("sample", model))
    if not attempts:
        raise McrError(f"{ledger.path}: no completions of model {model!r}; run `mcr sample` first")
    mode, verdicts = config.score.answer, _Verdicts(ledger, config, model, judge)
    joined = []
    for row in sorted(attempts, key=_place):
        attempt = attempts.pop(row)
        said = read_once(ledger, attempt, mode)
        answered = said is not None and said.answer is not None
        joined.append(
            Sample(
                row=row,
                outcome=attempt and attempt.outcome,
                error=attempt.error if attempt else "",
                said=said,
                text=attempt.text if attempt and not answered else "",
                **verdicts.on(row, said),
            )
        )
    return joined


class _Verdicts:
    """Verdicts of one judge on the completions of one model."""

    def __init__(self, ledger: Ledger, config: ConfigDict, model: str, judge: Judge):
        self._recalled, self._further = config.judge.recall_samples, range(1, config.judge.repeat)
        self._diagnoses, self._reasons = (
            {
                _place(row): verdict
                for row, verdict in ledger.answers(
                    Scope(stage, model, judge.name), judge.versions[stage]
                ).items()
            }
            for stage in STAGES
        )

    def on(self, row: RowKey, said: Completion | None) -> dict[str, Any]:
        """Returns the fields `diagnosis`, `reasons` and `repeats` of the sample at `row`."""
        answered = said is not None and said.answer is not None
        traced = said is not None and said.trace and row.sample < self._recalled
        first, *others = (
            (
                self._diagnoses.get((row.case, row.sample, repeat)) if answered else None,
                self._reasons.get((row.case, row.sample, repeat)) if traced else None,
            )
            for repeat in (0, *self._further)
        )
        return {"diagnosis": first[0], "reasons": first[1], "repeats": tuple(others)}


def _versions(samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    counts = {stage: collections.Counter() for stage in STAGES}
    for sample in samples:
        for stage, verdicts in zip(STAGES, (sample.diagnoses, sample.recalls), strict=True):
            for verdict in verdicts:
                if verdict is not None and verdict.outcome is Outcome.OK:
                    counts[stage][verdict.model_version or UNNAMED] += 1
    return {stage: dict(sorted(count.items())) for stage, count in counts.items()}


def _counting(sample: Sample, versions: Mapping[str, str], mixed: bool) -> Sample:
    """Returns `sample` with the verdicts of `versions` alone, "" is any; none if `mixed`."""

    def kept(verdict: Attempt | None) -> Attempt | None:
        if verdict is None or mixed:
            return None
        version = versions[verdict.row.stage]
        return verdict if version in ("", verdict.model_version) else None

    return dataclasses.replace(
        sample,
        diagnosis=kept(sample.diagnosis),
        reasons=kept(sample.reasons),
        repeats=tuple((kept(diagnosis), kept(reasons)) for diagnosis, reasons in sample.repeats),
    )


def _note(reported: collections.Counter[str], named: str, mixed: bool) -> str:
    """Returns one sentence for people if some verdicts do not count, else ""."""
    listed = ", ".join(f"{printable(name)}: {count}" for name, count in reported.most_common())
    if mixed:
        return (
            f"the judge reported several versions ({listed} verdicts), so no metric has a value; "
            "set config.judge.version to the one that counts"
        )
    if named and (others := reported.total() - reported[named]):
        return (
            f"{others} of {reported.total()} verdicts are not of config.judge.version={named} and "
            f"count as unresolved (reported: {listed})"
        )
    return ""


def _place(row: RowKey) -> tuple[str, int, int]:
    """Returns the part of the key that a completion shares with its verdicts."""
    return row.case, row.sample, row.repeat
