"""Check of disk space for the missing answers, before the first request."""

from collections.abc import Iterable

from mcr_jax import disk
from mcr_jax.generate.ledger import Scope, opened
from mcr_jax.workdir import Workdir

_TOKEN_BYTES = 4  # about, in English text


def require_room(
    workdir: Workdir, scopes: Iterable[Scope], wanted: int, tokens: int, remedy: str
) -> None:
    """Raises McrError if the disk of the ledger is too small for the missing answers.

    Args:
      workdir: folder of the ledger, which may not exist yet.
      scopes: scopes of the answers; answers in the ledger are not missing.
      wanted: number of answers, with those in the ledger.
      tokens: token limit of an answer.
      remedy: advice for the user besides freeing space.
    """
    held = 0
    if workdir.ledger.exists():
        with opened(workdir) as ledger:
            held = sum(map(ledger.held, scopes))
    missing = max(0, wanted - held)
    what = f"{missing} answers of up to {tokens} tokens"
    disk.require(workdir.ledger, missing * tokens * _TOKEN_BYTES, what, remedy)
