"""Checks free disk space before long work."""

import shutil
from pathlib import Path

from mcr_jax.errors import McrError


def require(place: Path, needed: float, what: str, remedy: str) -> None:
    """Raises McrError unless the disk of `place` has `needed` bytes free.

    Args:
      place: file or folder to be written; need not exist.
      needed: bytes.
      what: name of the content, for the message.
      remedy: an alternative to freeing space, for the message.
    """
    existing = place.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
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
