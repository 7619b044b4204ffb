"""Verdicts of two judges on the completions of a model, side by side.

An item is one verdict: on a completion in stage "diagnosis", on a statement in stage "reasons". A
completion without an answer, or without a trace, is wrong under every judge and has no item.

A judge that repeats its verdicts decides an item by their majority, as it decides a diagnosis in
results.json: the bridge is between the judges as they are used. Repeats are not items of their own,
because the repeats of two judges have no order in common. A completion is unresolved unless every
item has more than half of the judge's repeats on one side.
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
from mcr_jax.score.samples import ANSWERED, WRONG, kind, majority

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


class Counts(NamedTuple):
    """Counts of the verdicts of one judge.

    Attributes:
      versions: verdicts by stage and reported model version.
      repeats: completions by stage and number of repeats.
    """

    versions: dict[str, collections.Counter[str]]
    repeats: dict[str, collections.Counter[int]]


def read(
    ledger: Ledger,
    stage: str,
    model: str,
    judges: tuple[str, str],
    config: ConfigDict,
    counts: Mapping[str, Counts],
) -> list[Both]:
    """Reads the completions of a model with the verdicts of both judges.

    Args:
      ledger: may be read-only.
      stage: "diagnosis" or "reasons".
      model: name of the candidate.
      judges: names in the ledger.
      config: reads `judge` and `score.answer`. Of the headline judge only verdicts of
        `judge.version` count, if that is set.
      counts: of each judge, to be increased.

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
                verdicts = given[judge].verdicts[_place(row)]
                counts[judge].repeats[stage][len(verdicts)] += 1
                counts[judge].versions[stage].update(
                    verdict.model_version or joined.UNNAMED for verdict in verdicts if verdict
                )
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
      verdicts: one per repeat, by case and sample; None where none counts.
      cases: cases of which it was to judge a completion.
      whole: whether it was to judge every completion that needs a verdict. Otherwise it was given
        a part of the cases, and what is wrong without a judge counts in that part only.
    """

    verdicts: dict[tuple[str, int], list[Attempt | None]]
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
    first = headline(config)
    version = first.versions[scope.stage] if scope.judge == first.name else ""
    verdicts = collections.defaultdict(list)
    for row, verdict in ledger.answers(scope, version).items():  # by case, sample and repeat
        counts = verdict is not None and verdict.outcome is Outcome.OK
        counts = counts and version in ("", verdict.model_version)
        verdicts[_place(row)].append(verdict if counts else None)
    return _Given(dict(verdicts), {case for case, _ in verdicts}, needed <= verdicts.keys())


def _of_judge(given: _Given, place: tuple[str, int], fate: Fate, stage: str) -> Flags:
    """Returns the items of a completion. Raises McrError if a verdict has another form."""
    if fate is Fate.WRONG and (given.whole or place[0] in given.cases):
        return []
    verdicts = given.verdicts.get(place, [])
    there = [verdict for verdict in verdicts if verdict is not None]
    if fate is not Fate.JUDGED or not there:
        return None
    items = [_items(verdict, stage) for verdict in there]
    if len({len(of_repeat) for of_repeat in items}) > 1:
        raise McrError(damaged(there[-1], "and another repeat are of different statements"))
    missing = [None] * (len(verdicts) - len(there))
    decided = [majority([*votes, *missing]) for votes in zip(*items, strict=True)]
    return None if None in decided else decided


def _items(verdict: Attempt, stage: str) -> list[bool]:
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
