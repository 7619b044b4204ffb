"""Atomic writes, and a check for free space before long work."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mcr_jax.errors import McrError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path`, durably, when the block ends without an exception.

    Raises:
      McrError: it cannot be written; the old file is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are readable by their owner only
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise McrError(f"{path}: cannot write: {error.strerror or error}") from error


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
