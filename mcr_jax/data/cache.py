"""Arrays that are made once and kept in a file: mapped into memory, and whole or made anew.

A file is the SHA-256 of its rest, the length of the JSON in 8 bytes, JSON with each array's dtype
and shape, and the arrays. Its name must tell all that decides what is in it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mcr_jax import console, disk

_ALIGNED = 64  # bytes that every array begins at a multiple of
_DIGEST = hashlib.sha256().digest_size
_HEAD = _DIGEST + 8


def cached(
    path: Path | None, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays in `path`, read-only; where it does not hold them whole, `make()`, kept there.

    Any number of processes may ask for the same at once. None for `path` keeps nothing.

    Raises:
      McrError: the file cannot be written.
    """
    if path is None:
        return make()
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> Mapping[str, np.ndarray] | None:
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: it is empty
        console.say(f"  {path}: cannot be read ({error}); it is made anew")
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST].tobytes():
        console.say(f"  {path}: damaged, or no file of ours; it is made anew")
        return None
    start = _HEAD + int.from_bytes(content[_DIGEST:_HEAD].tobytes(), "little")
    arrays = {}
    for name, (dtype, shape) in json.loads(content[_HEAD:start].tobytes()).items():
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = content[start:stop].view(dtype).reshape(shape)
        start = stop + -stop % _ALIGNED
    return arrays


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with disk.atomic_write(path) as file:
        digest = hashlib.sha256()
        file.write(bytes(_DIGEST))
        for piece in _pieces(arrays):
            digest.update(piece)
            file.write(piece)
        file.seek(0)
        file.write(digest.digest())


def _pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    layout = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    line = json.dumps(layout).encode()
    line += b" " * (-(_HEAD + len(line)) % _ALIGNED)
    yield len(line).to_bytes(8, "little") + line
    for array in arrays.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % _ALIGNED)
