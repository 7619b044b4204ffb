"""How a completion ended, whether it is right, and accuracy@k of a case from its samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mcr_jax.completion import Completion
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, damaged

KS = (1, 5, 10)  # the k of accuracy@k, as far as there are samples

NO_ANSWER = "no_answer"  # ended by itself, without exactly one answer
MISSING = "missing"  # wanted, and never attempted
KINDS = (*(outcome.value for outcome in Outcome), NO_ANSWER, MISSING)

# What only a judge can decide, and what is wrong without asking one. Other kinds are unresolved.
ANSWERED = Outcome.OK.value
WRONG = frozenset({NO_ANSWER, Outcome.TRUNCATED.value})


class Estimate(NamedTuple):
    """One case's share of a metric, each number in [0, 1].

    Attributes:
      value: from what is resolved; None where that does not suffice.
      worst: with everything unresolved counted as wrong; at most `value`.
      best: with everything unresolved counted as right; at least `value`.
    """

    value: float | None
    worst: float
    best: float


UNRESOLVED = Estimate(None, 0.0, 1.0)


def kind(outcome: Outcome | None, said: Completion | None) -> str:
    """How a completion ended, one of `KINDS`; "OK" means that it has exactly one answer.

    Args:
      outcome: of the attempt at it, None where there was none.
      said: its text, read; None where its outcome is none that has text.
    """
    if outcome is None:
        return MISSING
    if said is None:
        return outcome.value
    if said.answer is not None:
        return ANSWERED
    return NO_ANSWER if outcome is Outcome.OK else Outcome.TRUNCATED.value


def right(kind_: str, verdict: Attempt | None) -> bool | None:
    """Whether a completion of that kind names the diagnosis; None while that is unresolved.

    Args:
      kind_: what `kind` says of the completion.
      verdict: the diagnosis judge's attempt at it, if any.

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


def accuracy_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c right ones.

    1 - C(n-c, k) / C(n, k): the unbiased estimate of pass@k (Chen et al., arXiv:2107.03374). The
    binomials are exact integers and Python rounds their quotient correctly, so nothing overflows
    or cancels.

    Raises:
      ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"no accuracy@{k} from {c} right of {n} samples")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def case_accuracy(rights: Sequence[bool | None], k: int) -> Estimate:
    """accuracy@k of one case from its samples, of which at least k must be resolved.

    Where fewer are, the case counts as a whole: `worst` is 0 and `best` is 1.
    """
    n, c, unresolved = len(rights), rights.count(True), rights.count(None)
    if n - unresolved < k:
        return UNRESOLVED
    return Estimate(
        accuracy_at_k(n - unresolved, c, k),
        accuracy_at_k(n, c, k),
        accuracy_at_k(n, c + unresolved, k),
    )
