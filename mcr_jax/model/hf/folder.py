"""Reads decoders from Hugging Face folders and writes them: safetensors, config.json, tokenizer.

    model = hf.load("path/to/folder")
    hf.save(model, "out")

Loading reads of each tensor only the parts that devices need, straight into the stacked and sharded
parameters; no second copy of the model is ever in memory.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mcr_jax.errors import McrError
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.hf import config_json
from mcr_jax.model.hf.safetensors_files import new_folder, write
from mcr_jax.model.hf.tensor_names import Placed, table
from mcr_jax.model.hf.weight_files import INDEX, SINGLE, Files
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, one_device, shardings
from mcr_jax.text.tokenizer import Tokenizer
from mcr_jax.text.tokenizer_folder import FILES as TOKENIZER_FILES
from mcr_jax.text.tokenizer_folder import GENERATION

FILE_BYTES = 5_000_000_000  # of one safetensors file
_PAGE_BYTES, _PAGES_PER_FILE = 4096, 256  # that `digest` reads of weights


def load(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    ignore: Collection[str] = (),
) -> Decoder:
    """Loads the decoder in a Hugging Face folder.

    Args:
      folder: with config.json and model*.safetensors of a family in `model.families`; of a
        multimodal Gemma 3 the text half is taken.
      mesh: where the parameters go, by the rules of `model.sharding`; None is the first device.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each tensor's.
      ignore: unknown keys of config.json to pass over.

    Raises:
      McrError: a file is missing or broken, the config asks for something this decoder does not
        compute, or tensors are missing, too many or misshapen.
    """
    config = config_json.read(folder, ignore)
    shapes = abstract_decoder(config)[1]
    like = abstract(shapes, shardings(mesh or one_device(), shapes))
    params = read_params(folder, config, like, dtype)
    config = dataclasses.replace(config, dtype=_dtype_name(params))
    return nnx.merge(abstract_decoder(config)[0], params)


def read_params(
    folder: str | Path, config: DecoderConfig, like: Any, dtype: str | None = None
) -> Any:
    """Reads a folder's parameters as a nested dict, shaped and sharded like `like`; see `load`."""
    files, places = Files(Path(folder), config.tied), table(config, like)
    files.check(places)
    params: dict[str, Any] = {}
    for path, where in places.items():
        inside = params.setdefault("layers", {}) if where.stacked else params
        inside[path[-1]] = files.array(where, _leaf(like, path).sharding, dtype)
    return params


def save(
    model: Decoder,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes a folder that transformers and vLLM load; whole or not at all.

    Args:
      model: to write, without adapters.
      folder: must not exist, or be empty.
      tokenizer: is written, too, and generation stops at its `eos_ids`; None copies the tokenizer
        files of the folder that `model` was loaded from.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each parameter's.
      file_bytes: largest size of one file of weights, unless one tensor is larger.

    Raises:
      McrError: the folder is taken, or cannot be written; no family of transformers computes what
        `model` does.
    """
    folder = Path(folder)
    if model.config.lora:
        raise McrError(f"{folder}: the decoder has adapters: `lora.merge` it, or `lora.save` them")
    config, scale = model.config, 1.0
    if not config.source and not config.tied:  # a head of its own: the scale can go into the table
        scale, config = config.embedding_scale, dataclasses.replace(config, embedding_scale=1.0)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    try:
        keys = config_json.to_json(config, dtype or _dtype_name(params))
    except ValueError as error:
        raise McrError(f"{folder}: cannot export: {error}") from error
    if tokenizer is not None:
        keys |= {"eos_token_id": list(tokenizer.eos_ids)}
        if not config.source:
            keys["bos_token_id"] = None  # or transformers takes a default
    with new_folder(folder, config_json.FILE) as aside:
        if tokenizer is not None:
            tokenizer.save_hf(aside)
            _end_generation(aside / GENERATION, tokenizer.eos_ids)
        elif config.folder:
            _carry(Path(config.folder), aside)
        (aside / config_json.FILE).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
        _write_tensors(aside, table(config, params), params, scale, dtype, file_bytes)


def digest(folder: str | Path) -> str:
    """Returns 16 hex digits by which a change of a folder's model is noticed.

    It is SHA-256 over config.json, the tokenizer's files, and size and 256 evenly spread pages of
    each file of weights: reading all of them would take minutes.

    Raises:
      McrError: a file cannot be read.
    """
    folder, sha256 = Path(folder), hashlib.sha256()
    try:
        for name in (config_json.FILE, *TOKENIZER_FILES):
            if (folder / name).exists():
                sha256.update(f"{name} {(folder / name).stat().st_size}\n".encode())
                sha256.update((folder / name).read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            sha256.update(f"{path.name} {size}\n".encode())
            with open(path, "rb") as file:
                for place in range(0, size, max(_PAGE_BYTES, size // _PAGES_PER_FILE)):
                    file.seek(place)
                    sha256.update(file.read(_PAGE_BYTES))
    except OSError as error:
        raise McrError(f"{error.filename}: cannot read: {error.strerror}") from error
    return sha256.hexdigest()[:16]


def _end_generation(path: Path, eos_ids: Collection[int]) -> None:
    """Writes the end tokens of a model that was trained here into generation_config.json."""
    keys = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(keys | {"eos_token_id": list(eos_ids)}, indent=2) + "\n")


def _carry(source: Path, into: Path) -> None:
    """Copies the tokenizer's files."""
    if not source.is_dir():
        raise McrError(f"{source}: the folder with the model's tokenizer is gone")
    for name in TOKENIZER_FILES:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source / name, into / name)


def _write_tensors(
    folder: Path,
    places: Mapping[tuple[str, ...], Placed],
    params: Any,
    scale: float,
    dtype: str | None,
    file_bytes: int,
) -> None:
    """Writes model.safetensors, or several and their index, one file in memory at a time."""
    entries: dict[str, list[tuple[tuple[str, ...], int]]] = {}  # by tensor; several where fused
    for row in range(max(len(placed.names) for placed in places.values())):
        for path, placed in places.items():
            for name in placed.names[row : row + 1]:
                entries.setdefault(name, []).append((path, row))
    files: list[list[str]] = [[]]
    room, total = file_bytes, 0
    for name in sorted(entries, key=lambda name: _order(*entries[name][0])):
        path = entries[name][0][0]
        kept = jnp.dtype(dtype or _leaf(params, path).dtype)
        size = kept.itemsize * math.prod(places[path].in_file)
        if files[-1] and size > room:
            files.append([])
            room = file_bytes
        files[-1].append(name)
        room, total = room - size, total + size
    where = {}
    for number, held in enumerate(files, 1):
        file = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors: dict[str, np.ndarray] = {}
        parts = [(name, *part) for name in held for part in entries[name]]
        for name, path, row in parts:
            placed, leaf = places[path], _leaf(params, path)
            kept, leaf = jnp.dtype(dtype or leaf.dtype), leaf[row] if placed.stacked else leaf
            if path == ("embedding",) and scale != 1:
                leaf = leaf.astype(jnp.float32) * scale
            tensors[name] = placed.to_file(np.asarray(leaf.astype(kept)), tensors.get(name))
            where[name] = file
        write(tensors, folder / file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _order(path: tuple[str, ...], row: int) -> tuple[int, int]:
    """Sorts the embedding first, then the layers one by one, then the rest."""
    return (1, row) if path[0] == "layers" else (0 if path == ("embedding",) else 2, 0)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _dtype_name(params: Any) -> str:
    """Returns the dtype of most of the parameters."""
    sizes: dict[str, int] = {}
    for leaf in jax.tree.leaves(params):
        sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.size
    return max(sizes, key=sizes.__getitem__)
