"""Memory-mapped array cache with atomic writes and checksums.

A file holds the SHA-256 of the rest, the length of the JSON in 8 bytes, JSON with each array's
dtype and shape, and the arrays. Its name must be a key of everything that decides its content.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mcr_jax import console, disk

_ALIGNMENT = 64  # bytes
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_BYTES = _DIGEST_BYTES + 8


def cached(
    path: Path | None, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Returns the arrays in `path`, read-only; if missing or damaged, those of `make()`.

    The file is written then. Any number of processes may do this at once. None for `path` disables
    the cache.

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
    except (OSError, ValueError) as error:  # ValueError: empty file
        console.say(f"  {path}: cannot be read ({error}); it is made anew")
        return None
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES].tobytes():
        console.say(f"  {path}: damaged, or not a file of this cache; it is made anew")
        return None
    start = _HEADER_BYTES + int.from_bytes(content[_DIGEST_BYTES:_HEADER_BYTES].tobytes(), "little")
    arrays = {}
    for name, (dtype, shape) in json.loads(content[_HEADER_BYTES:start].tobytes()).items():
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = content[start:stop].view(dtype).reshape(shape)
        start = stop + -stop % _ALIGNMENT
    return arrays


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with disk.atomic_write(path) as file:
        digest = hashlib.sha256()
        file.write(bytes(_DIGEST_BYTES))
        for piece in _pieces(arrays):
            digest.update(piece)
            file.write(piece)
        file.seek(0)
        file.write(digest.digest())


def _pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    layout = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    line = json.dumps(layout).encode()
    line += b" " * (-(_HEADER_BYTES + len(line)) % _ALIGNMENT)
    yield len(line).to_bytes(8, "little") + line
    for array in arrays.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % _ALIGNMENT)
