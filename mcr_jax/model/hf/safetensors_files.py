"""Folders of safetensors files: faults are one line, writes are whole or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mcr_jax.errors import McrError
from mcr_jax.paths import local_folder

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names and ours

_ASIDE = ".aside"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file for numpy slices. Raises McrError if it is not whole."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except FileNotFoundError as error:
        raise McrError(f"{path}: no such file; weights are read from safetensors") from error
    except (OSError, SafetensorError) as error:
        raise McrError(f"{path}: not a whole safetensors file: {error}") from error


def write(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one safetensors file, readable by all who may read its folder."""
    save_file(dict(tensors), path, {"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library makes it private


def refuse_taken(folder: Path) -> None:
    """Raises McrError if `folder` is an address, or exists and is not empty."""
    local_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(p.name != _ASIDE for p in folder.iterdir())):
        raise McrError(f"{folder}: already there; name a folder that is new or empty")


@contextlib.contextmanager
def new_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yields a temporary folder, whose files move to `folder` when the block ends without a fault.

    Args:
      folder: new or empty; an empty one is kept, as it may be a mount point or a link.
      last: name of the file that readers look for first; it is moved last.

    Raises:
      McrError: `folder` is taken or an address, or something cannot be written.
    """
    refuse_taken(folder)
    place = Path(os.path.realpath(folder))
    there = place.exists()
    aside = place / _ASIDE if there else place.with_name(f".{place.name}{_ASIDE}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if there:
            for path in sorted(aside.iterdir(), key=lambda path: path.name == last):
                os.replace(path, place / path.name)
        else:
            os.replace(aside, place)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise McrError(f"{folder}: cannot write: {reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
