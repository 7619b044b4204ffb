"""Room on a disk, asked for before long work instead of missed in the middle of it."""

import shutil
from pathlib import Path

from mcr_jax.errors import McrError


def require(place: Path, needed: float, what: str, remedy: str) -> None:
    """Raises McrError if the disk of `place` has not `needed` bytes free.

    Args:
      place: file or folder that will be written; it need not exist.
      needed: bytes.
      what: will be written, for the message.
      remedy: what the user can do besides freeing some.
    """
    there = place.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise McrError(
            f"{place}: no space left for {what}: up to {_size(needed)} are needed and "
            f"{_size(free)} are free; free some, or {remedy}"
        )


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
