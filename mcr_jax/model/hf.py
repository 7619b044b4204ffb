"""Decoders from Hugging Face folders and back: safetensors, config.json, tokenizer files.

    model = hf.load("path/to/folder")
    hf.save(model, "out")

Loading reads each tensor from its file only where a device needs it, straight into the stacked and
sharded parameters; no second copy of the model is ever in memory.
"""

import contextlib
import dataclasses
import functools
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.data.tokenizer_folder import FILES as TOKENIZER_FILES
from mcr_jax.data.tokenizer_folder import GENERATION
from mcr_jax.errors import McrError
from mcr_jax.model import hf_config
from mcr_jax.model.blueprint import blueprint
from mcr_jax.model.config import DecoderConfig
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.folder import DTYPES, new_folder, opened, write
from mcr_jax.model.sharding import abstract, one_device, shardings

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_BYTES = 5_000_000_000  # of one safetensors file
_PAGE = 4096  # bytes
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")  # Gemma 3 has borne all
_VISION = ("vision_tower.", "multi_modal_projector.")

# Name in a layer, or outside of one, and how many of the leading axes are the columns of the file's
# matrix [out, in]; None where the file has the same order.
_LAYER = {
    "attention_norm": ("input_layernorm.weight", None),
    "q": ("self_attn.q_proj.weight", 1),
    "q_bias": ("self_attn.q_proj.bias", None),
    "k": ("self_attn.k_proj.weight", 1),
    "k_bias": ("self_attn.k_proj.bias", None),
    "v": ("self_attn.v_proj.weight", 1),
    "v_bias": ("self_attn.v_proj.bias", None),
    "q_norm": ("self_attn.q_norm.weight", None),
    "k_norm": ("self_attn.k_norm.weight", None),
    "o": ("self_attn.o_proj.weight", 2),
    "mlp_norm": ("post_attention_layernorm.weight", None),
    "gate": ("mlp.gate_proj.weight", 1),
    "up": ("mlp.up_proj.weight", 1),
    "down": ("mlp.down_proj.weight", 1),
}
_SANDWICH = {  # the same name is another norm in Gemma
    "attention_post_norm": ("post_attention_layernorm.weight", None),
    "mlp_norm": ("pre_feedforward_layernorm.weight", None),
    "mlp_post_norm": ("post_feedforward_layernorm.weight", None),
}
_OUTSIDE = {"embedding": "embed_tokens.weight", "final_norm": "norm.weight"}
_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where one parameter lies in a folder's files.

    Attributes:
      shape: of the parameter; with `stacked`, axis 0 is the layer.
      names: of the tensors that hold it, one per layer if stacked, else one.
      stacked: whether it belongs to the layers.
      inputs: how many of its axes, after the layer's, are the columns of the file's matrix; None
        where the file has the same order.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    inputs: int | None

    @property
    def in_file(self) -> tuple[int, ...]:
        """The shape of each tensor in the files."""
        shape = self.shape[self.stacked :]
        if self.inputs is None:
            return (math.prod(shape),) if self.stacked else shape
        return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])

    def from_file(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor of the file, or a block of it, as this parameter has it in `shape`."""
        return (matrix if self.inputs is None else matrix.T).reshape(shape)

    def to_file(self, values: np.ndarray) -> np.ndarray:
        """One layer's values as the file has them, in one piece."""
        flat = values.reshape(self.in_file if self.inputs is None else self.in_file[::-1])
        return np.ascontiguousarray(flat if self.inputs is None else flat.T)

    def block(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The block of a tensor in the file that holds `index` of one layer."""
        shape = self.shape[self.stacked :]
        if self.inputs is None:
            return (_flat(index, shape),) if self.stacked else index
        cut = self.inputs
        return _flat(index[cut:], shape[cut:]), _flat(index[:cut], shape[:cut])


def load(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    ignore: Collection[str] = (),
) -> Decoder:
    """The decoder in a Hugging Face folder.

    Args:
      folder: with config.json and model*.safetensors of Qwen 2, Qwen 3, Llama 3 or Gemma 3; of a
        multimodal Gemma 3 the text half is taken.
      mesh: where the parameters go, by the rules of `model.sharding`; None is the first device.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each tensor's.
      ignore: keys of config.json to pass over although they are unknown here.

    Raises:
      McrError: a file is missing or broken, the config is of something else, or tensors are
        missing, too many or misshapen; all of them are listed.
    """
    config = hf_config.read(folder, ignore)
    shapes = blueprint(config)[1]
    like = abstract(shapes, shardings(mesh or one_device(), shapes))
    params = read_params(folder, config, like, dtype)
    config = dataclasses.replace(config, dtype=_dtype_name(params))
    return nnx.merge(blueprint(config)[0], params)


def read_params(
    folder: str | Path, config: DecoderConfig, like: Any, dtype: str | None = None
) -> Any:
    """The parameters of a folder as a nested dict, of `like`'s shapes and shardings; see `load`."""
    files = _Files(Path(folder))
    table = _table(config, like, files.prefix(), files.head())
    files.check(table, config.tied)
    params: dict[str, Any] = {}
    for path, where in table.items():
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
      model: whose parameters are written.
      folder: must not exist, or be empty.
      tokenizer: goes along, and its `eos_ids` are where generation is to stop; None copies the
        tokenizer files of the folder `model` was loaded from.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each parameter's.
      file_bytes: a file of weights is cut before it would be larger.

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
    table = _table(config, params, _PREFIXES[0], _HEAD)
    try:
        told = hf_config.to_json(config, dtype or _dtype_name(params))
    except ValueError as error:
        raise McrError(f"{folder}: cannot export: {error}") from error
    if tokenizer is not None:
        told |= {"eos_token_id": list(tokenizer.eos_ids)}
        told = told if config.source else told | {"bos_token_id": None}  # or a default would stand
    with new_folder(folder, hf_config.FILE) as aside:
        if tokenizer is not None:
            tokenizer.save_hf(aside)
            _end_generation(aside / GENERATION, tokenizer.eos_ids)
        elif config.folder:
            _carry(Path(config.folder), aside)
        (aside / hf_config.FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        _write_tensors(aside, table, params, scale, dtype, file_bytes)


def digest(folder: str | Path) -> str:
    """A name (16 hex digits) for what a folder holds, by which another model in it is noticed.

    SHA-256 over config.json and the tokenizer's files, and over size and about 256 pages of each
    file of weights, evenly spread: reading all of them would take minutes.

    Raises:
      McrError: a file cannot be read.
    """
    folder, told = Path(folder), hashlib.sha256()
    try:
        for name in (hf_config.FILE, *TOKENIZER_FILES):
            if (folder / name).exists():
                told.update(f"{name} {(folder / name).stat().st_size}\n".encode())
                told.update((folder / name).read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            told.update(f"{path.name} {size}\n".encode())
            with open(path, "rb") as file:
                for place in range(0, size, max(_PAGE, size // 256)):
                    file.seek(place)
                    told.update(file.read(_PAGE))
    except OSError as error:
        raise McrError(f"{error.filename}: cannot read: {error.strerror}") from error
    return told.hexdigest()[:16]


def _end_generation(path: Path, eos_ids: Collection[int]) -> None:
    """Says in generation_config.json where a model that was trained here stops."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(told | {"eos_token_id": list(eos_ids)}, indent=2) + "\n")


def _carry(source: Path, into: Path) -> None:
    """Copies the tokenizer's files."""
    if not source.is_dir():
        raise McrError(f"{source}: the folder with the model's tokenizer is gone")
    for name in TOKENIZER_FILES:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source / name, into / name)


class _Files:
    """The safetensors files of a folder: which tensor is where, of what shape and dtype."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for path in self._paths():
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_slice(name)
                    self._found[name] = path, tuple(tensor.get_shape()), tensor.get_dtype()

    def _paths(self) -> list[Path]:
        index, single = self._folder / INDEX, self._folder / SINGLE
        if single.exists():  # before an index, as transformers does: it may be an older model's
            return [single]
        if not index.exists():
            raise McrError(f"{self._folder}: neither {SINGLE} nor {INDEX} is here")
        try:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(where.values()), key=str)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise McrError(f"{index}: not an index of safetensors files") from error
        for name in names:
            if (
                not isinstance(name, str)
                or Path(name).name != name
                or not (self._folder / name).is_file()
            ):
                raise McrError(f"{index}: names {name!r}, which is not in this folder")
        return [self._folder / name for name in names]

    def prefix(self) -> str:
        """What stands before `layers.` and `embed_tokens.`."""
        here = [p for p in _PREFIXES if f"{p}{_OUTSIDE['embedding']}" in self._found]
        return here[0] if here else _PREFIXES[0]

    def head(self) -> str:
        """The name of the head's tensor."""
        return next((name for name in self._found if name.endswith(f".{_HEAD}")), _HEAD)

    def check(self, table: Mapping[str, Placed], tied: bool) -> None:
        """Raises McrError with every tensor that is missing, too many or misshapen."""
        expected = {name: placed.in_file for placed in table.values() for name in placed.names}
        faults = [f"{name} is missing" for name in expected if name not in self._found]
        for name, (_, shape, dtype) in self._found.items():
            if name in expected:
                if shape != expected[name]:
                    faults.append(f"{name} is {list(shape)}, not {list(expected[name])}")
                if dtype not in DTYPES:
                    faults.append(f"{name} is of dtype {dtype}, none of {', '.join(DTYPES)}")
            elif tied and name == self.head():
                if not self._same(name, table["embedding",].names[0]):
                    faults.append(f"{name} differs from the embedding although they are tied")
            elif not (
                name.removeprefix("model.").startswith(_VISION) or name.endswith(".inv_freq")
            ):
                faults.append(f"{name} is not of this model")
        for placed in table.values():
            dtypes = {self._found[name][2] for name in placed.names if name in self._found}
            dtypes &= DTYPES.keys()
            if len(dtypes) > 1:
                faults.append(f"{placed.names[0]} and its like are of {', '.join(sorted(dtypes))}")
        if faults:
            raise McrError(f"{self._folder}: {len(faults)} tensors are wrong: {'; '.join(faults)}")

    def _same(self, one: str, other: str) -> bool:
        if one not in self._found or other not in self._found:
            return False
        (_, shape, kept), (_, *same) = self._found[one], self._found[other]
        if same != [shape, kept]:
            return False
        rows = shape[0]
        blocks = [(slice(first, min(first + 4096, rows)),) for first in range(0, rows, 4096)]
        return all(
            self._read(one, block).tobytes() == self._read(other, block).tobytes()
            for block in blocks
        )

    def _read(self, name: str, block: tuple[slice, ...]) -> np.ndarray:
        # Opened anew for each tensor: the pages of a closed file leave the process.
        with opened(self._found[name][0]) as file:
            return file.get_slice(name)[block]

    def array(self, placed: Placed, sharding: NamedSharding, dtype: str | None) -> jax.Array:
        """One parameter on its devices; of a stacked one, a layer at a time is in memory here."""
        kept = jnp.dtype(dtype or DTYPES[self._found[placed.names[0]][2]])
        if not placed.stacked:
            return self._tensor(placed, placed.names[0], sharding, kept)
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        stack = jax.jit(lambda: jnp.zeros(placed.shape, kept), out_shardings=sharding)()
        put = jax.jit(
            lambda stack, values, layer: stack.at[layer].set(values),
            donate_argnums=0,
            out_shardings=sharding,
        )
        for layer, name in enumerate(placed.names):
            stack = put(stack, self._tensor(placed, name, of_layer, kept), layer)
        return stack

    def _tensor(self, placed: Placed, name: str, sharding: NamedSharding, dtype: Any) -> jax.Array:
        """One tensor of the files, each device's part read where it is needed."""
        shape = placed.shape[placed.stacked :]

        @functools.cache
        def part(key: tuple[tuple[int, int], ...]) -> np.ndarray:
            index = tuple(slice(*ends) for ends in key)
            values = self._read(name, placed.block(index))
            sizes = tuple(stop - start for start, stop in key)
            return np.ascontiguousarray(placed.from_file(values, sizes)).astype(dtype, copy=False)

        def of(index: tuple[slice, ...]) -> np.ndarray:
            return part(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)))

        return jax.make_array_from_callback(shape, sharding, of)


def _table(
    config: DecoderConfig, shapes: Any, prefix: str, head: str
) -> dict[tuple[str, ...], Placed]:
    """Every parameter by its path and where it lies in the files, in the order of the files."""
    per_layer = _LAYER | (_SANDWICH if config.sandwich_norm else {})
    table = {}
    for name in ("embedding", "layers", "final_norm", "head"):
        if name == "layers":
            for own, (theirs, inputs) in per_layer.items():
                if own in shapes["layers"]:
                    names = tuple(f"{prefix}layers.{i}.{theirs}" for i in range(config.layers))
                    shape = tuple(shapes["layers"][own].shape)
                    table["layers", own] = Placed(shape, names, True, inputs)
        elif name in shapes:
            theirs = head if name == "head" else prefix + _OUTSIDE[name]
            table[name,] = Placed(tuple(shapes[name].shape), (theirs,), False, None)
    return table


def _write_tensors(
    folder: Path,
    table: Mapping[tuple[str, ...], Placed],
    params: Any,
    scale: float,
    dtype: str | None,
    file_bytes: int,
) -> None:
    """model.safetensors, or several and their index; at most one file's tensors are in memory."""
    entries = [
        (name, path, row)
        for row in range(max(len(placed.names) for placed in table.values()))
        for path, placed in table.items()
        for name in placed.names[row : row + 1]
    ]
    entries.sort(key=lambda entry: _order(entry[1], entry[2]))
    files: list[list[tuple[str, tuple[str, ...], int]]] = [[]]
    room, total = file_bytes, 0
    for entry in entries:
        kept = jnp.dtype(dtype or _leaf(params, entry[1]).dtype)
        size = kept.itemsize * math.prod(table[entry[1]].in_file)
        if files[-1] and size > room:
            files.append([])
            room = file_bytes
        files[-1].append(entry)
        room, total = room - size, total + size
    where = {}
    for number, members in enumerate(files, 1):
        file = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {}
        for name, path, row in members:
            placed, leaf = table[path], _leaf(params, path)
            kept, leaf = jnp.dtype(dtype or leaf.dtype), leaf[row] if placed.stacked else leaf
            if path == ("embedding",) and scale != 1:
                leaf = leaf.astype(jnp.float32) * scale
            tensors[name] = placed.to_file(np.asarray(leaf.astype(kept)))
            where[name] = file
        write(tensors, folder / file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _order(path: tuple[str, ...], row: int) -> tuple[int, int]:
    """Embedding, the layers one by one, and the rest."""
    return (1, row) if path[0] == "layers" else (0 if path == ("embedding",) else 2, 0)


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """A block of `shape`, whole but on its first axis, as a slice of its elements in a row."""
    inner = math.prod(shape[1:])
    if any((s.start, s.stop) != (0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(f"sharded on an inner axis: {index} of {shape}")
    return slice(index[0].start * inner, index[0].stop * inner)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _dtype_name(params: Any) -> str:
    """The dtype of most of the parameters."""
    sizes: dict[str, int] = {}
    for leaf in jax.tree.leaves(params):
        sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.size
    return max(sizes, key=sizes.__getitem__)
