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
        kinds = [kind(sample.outcome, sample.said) for sample in rows]
        rights = [
            [right(of, verdict) for verdict in row.diagnoses]
            for of, row in zip(kinds, rows, strict=True)
        ]
        shares = [
            [sample_recall(row.said, verdict) for verdict in row.recalls]
            for row in rows
            if row.row.sample < config.judge.recall_samples
        ]
        collected[case] = CaseScore(
            kinds=kinds,
            rules=[sample.said and sample.said.rule for sample in rows],
            right=[majority(of_sample) for of_sample in rights],
            recall=[_mean([share.found for share in of_sample]) for of_sample in shares],
            recall_verified=[
                _mean([share.verified for share in of_sample]) for of_sample in shares
            ],
            repeats=_repeats(rights, shares) if config.judge.repeat > 1 else {},
        )
    return collected


def majority(votes: Sequence[bool | None]) -> bool | None:
    """Returns what more than half of `votes` say; None if neither True nor False has as many."""
    for side in (True, False):
        if 2 * votes.count(side) > len(votes):
            return side
    return None


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return math.fsum(known) / len(known) if known else None


def _repeats(rights: Any, shares: Any) -> dict[str, list[list[Any]]]:
    """Returns the values of each repeat, by sample."""
    return {
        "right": rights,
        "recall": [[share.found for share in of_sample] for of_sample in shares],
        "recall_verified": [[share.verified for share in of_sample] for of_sample in shares],
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
