"""Checkpoints of a run as files: the newest step, and digests by which a change is noticed.

No checkpoint is loaded, and jax is not imported.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.paths import expanded
from mcr_jax.workdir import digest, storage_path

_BLOCK_BYTES = 1 << 16
_BLOCKS_PER_FILE = 64  # read of a large file: trained weights differ everywhere


def newest_step(checkpoints: str | Path) -> int | None:
    """Returns the step of the newest whole checkpoint, by file names alone; None without any."""
    return max(steps(checkpoints), default=None)


def steps(checkpoints: str | Path) -> list[int]:
    """Lists the steps of the whole checkpoints in a folder or at an address."""
    if "://" not in str(checkpoints):
        return [int(path.name) for path in expanded(checkpoints).glob("*") if _is_step(path)]
    # Object stores have no atomic rename: orbax marks whole checkpoints with a file.
    from mcr_jax.model.store import storage_errors

    with storage_errors(checkpoints, "look for"):
        named = [path for path in storage_path(checkpoints).glob("*") if _is_step(path)]
        return [int(path.name) for path in named if (path / "commit_success.txt").exists()]


def facts(checkpoints: Path, wanted: list[int]) -> dict[str, Any]:
    """Returns facts that change if the checkpoints of these steps do.

    Returns:
      "steps"; "files", a digest of names, sizes and times of all their files; and "content", the
      SHA-256 (hex) of names, sizes and contents; files above 4 MiB are sampled in blocks.

    Raises:
      McrError: a file cannot be read.
    """
    return {**_stated(checkpoints, wanted), "content": _content(checkpoints, wanted)}


def same(checkpoints: Path, wanted: list[int], known: dict[str, Any]) -> bool:
    """Returns whether `facts` of these steps equal `known`; reads files only if times differ.

    Raises:
      McrError: a file cannot be read.
    """
    stated = _stated(checkpoints, wanted)
    if stated["steps"] != known.get("steps"):
        return False
    if stated["files"] == known.get("files"):
        return True
    return _content(checkpoints, wanted) == known.get("content")  # copied, or touched


def _is_step(path: Any) -> bool:
    return path.name.isdecimal()


def _stated(checkpoints: Path, wanted: list[int]) -> dict[str, Any]:
    files = []
    with _reading():
        for name, path in _files(checkpoints, wanted):
            stat = path.stat()
            files.append([name, stat.st_size, stat.st_mtime_ns])
    return {"steps": sorted(wanted), "files": digest(files)}


def _content(checkpoints: Path, wanted: list[int]) -> str:
    sha256 = hashlib.sha256()
    with _reading():
        for name, path in _files(checkpoints, wanted):
            size = path.stat().st_size
            sha256.update(f"{name}\0{size}\0".encode())
            spread = max(_BLOCK_BYTES, (size - _BLOCK_BYTES) // (_BLOCKS_PER_FILE - 1))
            with open(path, "rb") as file:
                for start in range(0, size, spread):
                    file.seek(start)
                    sha256.update(file.read(_BLOCK_BYTES))
    return sha256.hexdigest()


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise McrError(f"{error.filename}: cannot read: {error.strerror}") from error


def _files(checkpoints: Path, wanted: list[int]) -> Iterator[tuple[str, Path]]:
    """Yields name and path of every file of these steps, ordered by name."""
    for step in sorted(wanted):
        for folder, folders, files in os.walk(checkpoints / str(step)):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                yield str(path.relative_to(checkpoints)), path
