"""Verdicts of two judges on the completions of a model, side by side.

An item is one verdict: on a completion in stage "diagnosis", on a statement in stage "reasons". A
completion without an answer, or without a trace, is wrong under every judge and has no item. Only
the first repetition of a judge is read.
"""

import collections
import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax import artifacts
from mcr_jax.errors import McrError
from mcr_jax.generate import joined
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, damaged
from mcr_jax.judge_specs import headline
from mcr_jax.score.samples import ANSWERED, WRONG, kind

_FIELD = {"diagnosis": "same", "reasons": "found"}  # of a verdict
Flags = list[bool] | None  # verdicts on a completion; None while unresolved, [] if wrong unjudged


@dataclasses.dataclass(frozen=True)
class Both:
    """One completion under the two judges.

    Attributes:
      case: fingerprint.
      first: verdicts of the first judge.
      second: verdicts of the second judge, in the same order.
    """

    case: str
    first: Flags
    second: Flags


def read(
    ledger: Ledger,
    stage: str,
    model: str,
    judges: tuple[str, str],
    config: ConfigDict,
    versions: Mapping[str, collections.Counter[str]],
) -> list[Both]:
    """Reads the completions of a model with the verdicts of both judges.

    Args:
      ledger: may be read-only.
      stage: "diagnosis" or "reasons".
      model: name of the candidate.
      judges: names in the ledger.
      config: reads `judge` and `score.answer`. Of the judge that it names only verdicts of
        `judge.version` count, if that is set.
      versions: receives, per judge, the number of verdicts by reported model version.

    Raises:
      McrError: a row is damaged, or the judges speak of different statements.
    """
    completions = list(_completions(ledger, stage, model, config))
    needed = {_place(row) for row, fate in completions if fate is Fate.JUDGED}
    given = {judge: _given(ledger, Scope(stage, model, judge), needed, config) for judge in judges}
    rows = []
    for row, fate in completions:
        flags = [_of_judge(of_judge, _place(row), fate, stage) for of_judge in given.values()]
        for judge, found in zip(judges, flags, strict=True):
            if found:
                version = given[judge].verdicts[_place(row)].model_version
                versions[judge][version or joined.UNNAMED] += 1
        rows.append(Both(row.case, *flags))
        _refuse_unequal(ledger, row, rows[-1])
    return rows


class Fate(enum.Enum):
    """Result of a completion before any verdict."""

    JUDGED = "a judge decides"
    WRONG = "wrong without a judge"
    OPEN = "unresolved whatever a judge says"


class _Given(NamedTuple):
    """Verdicts of one judge on one model.

    Attributes:
      verdicts: those that count, by case and sample.
      cases: cases of which it was to judge a completion.
      whole: whether it was to judge every completion that needs a verdict. Otherwise it was given
        a part of the cases, and what is wrong without a judge counts in that part only.
    """

    verdicts: dict[tuple[str, int], Attempt]
    cases: set[str]
    whole: bool


def _place(row: RowKey) -> tuple[str, int]:
    return row.case, row.sample


def _completions(
    ledger: Ledger, stage: str, model: str, config: ConfigDict
) -> Iterator[tuple[RowKey, Fate]]:
    for row, attempt in ledger.answers(Scope("sample", model)).items():
        said = joined.read_once(ledger, attempt, config.score.answer)
        if stage == "diagnosis":
            ended = kind(attempt and attempt.outcome, said)
            wrong, judged = ended in WRONG, ended == ANSWERED
        elif row.sample < config.judge.recall_samples:
            wrong, judged = said is not None and not said.trace, said is not None
        else:
            continue
        yield row, Fate.WRONG if wrong else Fate.JUDGED if judged else Fate.OPEN


def _given(
    ledger: Ledger, scope: Scope, needed: set[tuple[str, int]], config: ConfigDict
) -> _Given:
    version = config.judge.version if scope.judge == headline(config).name else ""
    answers = ledger.answers(scope, version)
    wanted = {_place(row) for row in answers if row.repeat == 0}
    verdicts = {
        _place(row): verdict
        for row, verdict in answers.items()
        if row.repeat == 0
        and verdict is not None
        and verdict.outcome is Outcome.OK
        and (not version or verdict.model_version == version)
    }
    return _Given(verdicts, {case for case, _ in wanted}, needed <= wanted)


def _of_judge(given: _Given, place: tuple[str, int], fate: Fate, stage: str) -> Flags:
    """Returns the items of a completion. Raises McrError if the verdict has another form."""
    if fate is Fate.WRONG and (given.whole or place[0] in given.cases):
        return []
    verdict = given.verdicts.get(place)
    if fate is not Fate.JUDGED or verdict is None:
        return None
    field = _FIELD[stage]
    form = {field: bool if stage == "diagnosis" else [bool]}
    if wrong := artifacts.wrong(verdict.verdict, form):
        raise McrError(damaged(verdict, f"is of another form: {wrong}"))
    found = verdict.verdict[field]
    return [found] if stage == "diagnosis" else found


def _refuse_unequal(ledger: Ledger, row: RowKey, both: Both) -> None:
    counts = [len(flags) for flags in (both.first, both.second) if flags is not None]
    if len(set(counts)) > 1:
        raise McrError(
            f"{ledger.path}: case {row.case[:12]}, model {row.model}, sample {row.sample}: the "
            f"judges speak of {counts[0]} and of {counts[1]} statements; run `mcr judge` again"
        )


def pairs(both: Both) -> list[tuple[bool, bool]]:
    """Returns the verdicts of both judges, item by item; [] unless both settled it."""
    if both.first is None or both.second is None:
        return []
    return list(zip(both.first, both.second, strict=True))
