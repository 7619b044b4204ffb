"""Reasoning recall: the share of the clinician's statements that a trace makes too."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mcr_jax.completion import Completion
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, damaged
from mcr_jax.score.accuracy import UNRESOLVED, Estimate


class Shares(NamedTuple):
    """Recall of one trace, each in [0, 1] or None while unresolved.

    Attributes:
      found: share of statements the judge found in the trace.
      verified: share of those it found with a quote that does stand in the trace.
    """

    found: float | None
    verified: float | None


NOTHING = Shares(0.0, 0.0)
UNKNOWN = Shares(None, None)


def sample_recall(said: Completion | None, verdict: Attempt | None) -> Shares:
    """Recall of one completion; an empty trace makes no statement, and no judge is asked.

    Args:
      said: the completion's text, read; None where it has none.
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


def case_recall(shares: Sequence[float | None]) -> Estimate:
    """Recall of one case: the mean over its judged samples that are resolved, if any is."""
    known = [share for share in shares if share is not None]
    if not known:
        return UNRESOLVED
    total, unresolved = math.fsum(known), len(shares) - len(known)
    return Estimate(
        total / len(known), total / len(shares), min(1.0, (total + unresolved) / len(shares))
    )
