"""Scores of single samples: how a completion ended, whether it is right, recall of its trace.

Of repeated verdicts, the majority decides the diagnosis: more than half of all repeats, so that a
tie is unresolved, and so is what missing repeats could turn. Recall is the mean of the repeats that
are there.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mcr_jax.completion import Completion
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import Sample
from mcr_jax.generate.ledger import Attempt, damaged
from mcr_jax.metrics import CaseScore

NO_ANSWER = "no_answer"  # the model ended by itself without exactly one answer
MISSING = "missing"  # declared in the ledger, never attempted
KINDS = (*(outcome.value for outcome in Outcome), NO_ANSWER, MISSING)

# A judge decides on ANSWERED; WRONG needs no judge; every other kind is unresolved.
ANSWERED = Outcome.OK.value
WRONG = frozenset({NO_ANSWER, Outcome.TRUNCATED.value})


def collect(samples: Sequence[Sample], config: ConfigDict) -> dict[str, CaseScore]:
    """Scores the samples of one model, case by case.

    Args:
      samples: of the model, by case and sample.
      config: reads `judge.recall_samples`.

    Returns:
      Case fingerprint to score, in the order of `samples`.

    Raises:
      McrError: a verdict is of another form.
    """
    collected = {}
    for case, of_case in itertools.groupby(samples, key=lambda sample: sample.row.case):
        rows = list(of_case)
        found = [decided(row) for row in rows]
        most = config.judge.recall_samples
        recalled = [of for of, row in zip(found, rows, strict=True) if row.row.sample < most]
        collected[case] = CaseScore(
            kinds=[of.kind for of in found],
            rules=[row.said and row.said.rule for row in rows],
            right=[of.right for of in found],
            recall=[of.recall.found for of in recalled],
            recall_verified=[of.recall.verified for of in recalled],
            repeats=_repeats(found, recalled) if config.judge.repeat > 1 else {},
        )
    return collected


class Shares(NamedTuple):
    """Recall of one trace; each share in [0, 1], or None while unresolved.

    Attributes:
      found: share of statements the judge found in the trace.
      verified: share of statements found with a quote that stands in the trace.
    """

    found: float | None
    verified: float | None


NOTHING = Shares(0.0, 0.0)
UNKNOWN = Shares(None, None)


class Decided(NamedTuple):
    """One completion under a judge.

    Attributes:
      kind: how it ended, see `kind`.
      right: what the majority of the repeats says; None while unresolved.
      recall: mean of the repeats that are there.
      rights: what each repeat says.
      shares: recall by each repeat.
    """

    kind: str
    right: bool | None
    recall: Shares
    rights: list[bool | None]
    shares: list[Shares]


def decided(sample: Sample) -> Decided:
    """Scores one completion. Raises McrError if a verdict is of another form."""
    ended = kind(sample.outcome, sample.said)
    rights = [right(ended, verdict) for verdict in sample.diagnoses]
    shares = [sample_recall(sample.said, verdict) for verdict in sample.recalls]
    recall = Shares(*(_mean(of_repeats) for of_repeats in zip(*shares, strict=True)))
    return Decided(ended, majority(rights), recall, rights, shares)


def majority(votes: Sequence[bool | None]) -> bool | None:
    """Returns what more than half of `votes` say; None if neither True nor False has as many."""
    for side in (True, False):
        if 2 * votes.count(side) > len(votes):
            return side
    return None


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return math.fsum(known) / len(known) if known else None


def _repeats(found: Sequence[Decided], recalled: Sequence[Decided]) -> dict[str, list[list[Any]]]:
    """Returns the values of each repeat, by sample."""
    return {
        "right": [of.rights for of in found],
        "recall": [[share.found for share in of.shares] for of in recalled],
        "recall_verified": [[share.verified for share in of.shares] for of in recalled],
    }


def kind(outcome: Outcome | None, said: Completion | None) -> str:
    """Returns how a completion ended, one of `KINDS`; "OK" means exactly one answer.

    Args:
      outcome: of the attempt; None without an attempt.
      said: the parsed text; None if the outcome has no text.
    """
    if outcome is None:
        return MISSING
    if said is None:
        return outcome.value
    if said.answer is not None:
        return ANSWERED
    return NO_ANSWER if outcome is Outcome.OK else Outcome.TRUNCATED.value


def right(kind_: str, verdict: Attempt | None) -> bool | None:
    """Returns whether a completion names the diagnosis; None while that is unresolved.

    Args:
      kind_: of the completion, as `kind` returns it.
      verdict: the diagnosis judge's attempt, if any.

    Raises:
      McrError: the verdict has another form than {"same": bool}.
    """
    if kind_ in WRONG:
        return False
    if kind_ != ANSWERED or verdict is None or verdict.outcome is not Outcome.OK:
        return None
    same = verdict.verdict.get("same") if isinstance(verdict.verdict, dict) else None
    if not isinstance(same, bool):
        raise McrError(damaged(verdict, "is not {'same': true or false}"))
    return same


def sample_recall(said: Completion | None, verdict: Attempt | None) -> Shares:
    """Returns the recall of one completion; 0 for an empty trace, which no judge sees.

    Args:
      said: the parsed text; None if the outcome has no text.
      verdict: the reasons judge's attempt at its trace, if any.

    Raises:
      McrError: the verdict lacks one boolean per statement.
    """
    if said is None:
        return UNKNOWN
    if not said.trace:
        return NOTHING
    if verdict is None or verdict.outcome is not Outcome.OK:
        return UNKNOWN
    return Shares(_share(verdict, "found"), _share(verdict, "verified"))


def _share(attempt: Attempt, field: str) -> float:
    found = flags(attempt, field)
    return sum(found) / len(found)


def flags(attempt: Attempt, field: str) -> list[bool]:
    """Returns one boolean per statement from a verdict on a trace.

    Args:
      attempt: the reasons judge's, with outcome OK.
      field: "found" or "verified".

    Raises:
      McrError: the verdict lacks them.
    """
    found = attempt.verdict.get(field) if isinstance(attempt.verdict, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(f, bool) for f in found):
        raise McrError(damaged(attempt, f"lacks one {field!r} per statement"))
    return found
