"""Check of disk space for the answers still to come, before the first request."""

from collections.abc import Iterable

from mcr_jax import disk
from mcr_jax.generate.ledger import Scope, opened
from mcr_jax.workdir import Workdir

_TOKEN_BYTES = 4  # of English text, about


def require_room(
    workdir: Workdir, scopes: Iterable[Scope], wanted: int, tokens: int, remedy: str
) -> None:
    """Raises McrError if the disk of the ledger is too small for the answers that it lacks.

    Args:
      workdir: its ledger need not exist.
      scopes: of the answers; those in the ledger are not asked for again.
      wanted: answers in all.
      tokens: that an answer may have.
      remedy: what the user can do besides freeing some space.
    """
    held = 0
    if workdir.ledger.exists():
        with opened(workdir) as ledger:
            held = sum(map(ledger.held, scopes))
    left = max(0, wanted - held)
    what = f"{left} answers of up to {tokens} tokens"
    disk.require(workdir.ledger, left * tokens * _TOKEN_BYTES, what, remedy)
