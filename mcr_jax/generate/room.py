"""Room on the disk for the answers that are still to be had, asked for before the first one."""

from collections.abc import Iterable
from pathlib import Path

from mcr_jax import disk
from mcr_jax.generate.ledger import Ledger, Scope

_TOKEN_BYTES = 4  # of English text, about


def require_room(
    ledger: Path, scopes: Iterable[Scope], wanted: int, tokens: int, remedy: str
) -> None:
    """Raises McrError if the disk of a ledger is too small for the answers that it lacks.

    Args:
      ledger: its file, which need not exist.
      scopes: of the answers; those that it holds count as had.
      wanted: answers in all.
      tokens: that an answer may have.
      remedy: what the user can do besides freeing some space.
    """
    held = 0
    if ledger.exists():
        with Ledger(ledger, readonly=True) as opened:
            held = sum(map(opened.held, scopes))
    left = max(0, wanted - held)
    what = f"{left} answers of up to {tokens} tokens"
    disk.require(ledger, left * tokens * _TOKEN_BYTES, what, remedy)
