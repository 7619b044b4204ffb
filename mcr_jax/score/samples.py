"""Scores of single samples: how a completion ended, whether it is right, recall of its trace."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

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
        shares = [
            sample_recall(sample.said, sample.reasons)
            for sample in rows
            if sample.row.sample < config.judge.recall_samples
        ]
        collected[case] = CaseScore(
            kinds=kinds,
            rules=[sample.said and sample.said.rule for sample in rows],
            right=[right(of, row.diagnosis) for of, row in zip(kinds, rows, strict=True)],
            recall=[share.found for share in shares],
            recall_verified=[share.verified for share in shares],
        )
    return collected


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
    flags = attempt.verdict.get(field) if isinstance(attempt.verdict, dict) else None
    if not isinstance(flags, list) or not flags or not all(isinstance(f, bool) for f in flags):
        raise McrError(damaged(attempt, f"lacks one {field!r} per statement"))
    return sum(flags) / len(flags)
