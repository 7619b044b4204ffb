"""Weights of a Hugging Face folder: finds and checks tensors, reads the parts devices need."""

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mcr_jax.errors import McrError
from mcr_jax.model.hf.config_keys import shown
from mcr_jax.model.hf.safetensors_files import DTYPES, opened
from mcr_jax.model.hf.tensor_names import EMBEDDING, HEAD, Placed, standard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_IGNORED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*|.*\.inv_freq")
_ROWS_COMPARED = 4096  # at a time
_MAX_FAULT_KINDS = 4  # in a message

# Files found in place of the above, and what to do about each.
_OTHER_FORMATS = {
    "adapter_model.safetensors": "holds adapters only: merge them into their base model first",
    "model-*-of-*.safetensors": f"is there without {INDEX}: download that too",
    "*.safetensors": "is not in transformers' layout",
    "pytorch_model*.bin": "is pickled: load and save it once with transformers",
    "*.gguf": "is GGUF, which is not read here: take the folder with safetensors files",
}
# Parts of tensors' names that explain all other faults.
_CAUSES = {
    r"\.(qweight|qzeros|scales|weight_packed|weight_scale|weight_scale_inv|absmax|SCB)$": (
        "the weights are quantized: take the folder of the unquantized model"
    ),
    r"\.(lora_A|lora_B|base_layer)\.": (
        "adapters stand beside the weights: merge them (PEFT: merge_and_unload) and save again"
    ),
    r"\.(experts|block_sparse_moe)\.": "the model is a mixture of experts, which is not read here",
}


class _Slot(NamedTuple):
    """Entry of a tensor in a file; `dtype` is safetensors' name."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Files:
    """Safetensors files of a folder, their tensors by transformers' names.

    Args:
      folder: of the files.
      tied: whether the head is the embedding; then either of the two tensors is enough.

    Raises:
      McrError: files are missing or broken, or a tensor stands in two places.
    """

    def __init__(self, folder: Path, tied: bool):
        self._folder, self._tied = folder, tied
        self._found: dict[str, _Slot] = {}
        paths, index = self._paths()
        slots: dict[str, list[_Slot]] = {}
        for path in paths:
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_slice(name)
                    slot = _Slot(path, name, tuple(tensor.get_shape()), tensor.get_dtype())
                    slots.setdefault(name, []).append(slot)
        for name, places in slots.items():
            slot = places[0] if len(places) == 1 else self._indexed(name, places, index)
            before = self._found.setdefault(standard(name), slot)
            if before is not slot:
                both = f"{shown(before.name)} and {shown(name)}"
                raise McrError(f"{folder}: {both} are the same parameter")
        if tied and EMBEDDING not in self._found and HEAD in self._found:
            self._found[EMBEDDING] = self._found.pop(HEAD)

    def _paths(self) -> tuple[list[Path], Mapping[str, str]]:
        """Returns the files, and the index's file name of each tensor."""
        index, single = self._folder / INDEX, self._folder / SINGLE
        if single.exists():  # before an index, like transformers: an older model may have left one
            return [single], {}
        if not index.exists():
            instead = next(self._instead(), "")
            raise McrError(f"{self._folder}: neither {SINGLE} nor {INDEX} is here{instead}")
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
        return [self._folder / name for name in names], where

    def _instead(self) -> Iterator[str]:
        for pattern, advice in _OTHER_FORMATS.items():
            for path in sorted(self._folder.glob(pattern))[:1]:
                yield f"; {path.name} {advice}"

    def _indexed(self, name: str, places: list[_Slot], index: Mapping[str, str]) -> _Slot:
        for slot in places:
            if slot.path.name == index.get(name):
                return slot
        files = ", ".join(slot.path.name for slot in places)
        raise McrError(
            f"{self._folder}: {shown(name)} stands in {files}, and {INDEX} names none of them"
        )

    def check(self, table: Mapping[Any, Placed]) -> None:
        """Raises McrError, one line, if tensors are missing, too many or misshapen."""
        expected = {name: placed.in_file for placed in table.values() for name in placed.names}
        faults = [(name, "is missing") for name in expected if name not in self._found]
        for name, slot in self._found.items():
            if name in expected:
                if slot.shape != expected[name]:
                    text = f"is {list(slot.shape)}, not {list(expected[name])}"
                    faults.append((slot.name, text))
                if slot.dtype not in DTYPES:
                    text = f"is of dtype {slot.dtype}, none of {', '.join(DTYPES)}"
                    faults.append((slot.name, text))
            elif self._tied and name == HEAD:
                if not self._same(name, EMBEDDING):
                    text = f"differs from {EMBEDDING}, and config.json says that they are tied"
                    faults.append((slot.name, text))
            elif not _IGNORED.fullmatch(name):
                faults.append((slot.name, "is not of this model"))
        if faults:
            cause = self._cause(expected)
            message = cause or f"{len(faults)} tensors are wrong: {grouped(faults)}"
            raise McrError(f"{self._folder}: {message}")

    def _cause(self, expected: Mapping[str, Any]) -> str:
        """Returns the known cause of all faults; "" if there is none."""
        for pattern, cause in _CAUSES.items():
            for name in self._found:
                if re.search(pattern, name):
                    return f"{cause} ({shown(name)})"
        here, wanted = _layers(self._found), _layers(expected)
        if here and here != wanted:
            return f"the files hold {here} layers, and config.json says {wanted}"
        if not expected.keys() & self._found.keys():
            first = next(iter(self._found), "nothing")
            return f"the files hold none of the model's tensors, but {shown(first)}"
        return ""

    def _same(self, one: str, other: str) -> bool:
        a, b = self._found.get(one), self._found.get(other)
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        rows, step = a.shape[0], _ROWS_COMPARED
        blocks = [(slice(first, min(first + step, rows)),) for first in range(0, rows, step)]
        return all(_read(a, block).tobytes() == _read(b, block).tobytes() for block in blocks)

    def array(self, placed: Placed, sharding: NamedSharding, dtype: str | None) -> jax.Array:
        """Reads one parameter onto its devices, a layer at a time.

        Without `dtype` it keeps the files' dtype; the widest where layers differ.
        """
        kept = jnp.dtype(dtype or jnp.result_type(*self._dtypes(placed)))
        if not placed.stacked:
            return self._tensor(placed, placed.names[0], sharding, kept)
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        empty, put = _stacking(placed.shape, kept, sharding)
        stack = empty()
        for layer, name in enumerate(placed.names):
            stack = put(stack, self._tensor(placed, name, of_layer, kept), layer)
        return stack

    def _dtypes(self, placed: Placed) -> set[Any]:
        return {jnp.dtype(DTYPES[self._found[name].dtype]) for name in placed.names}

    def _tensor(self, placed: Placed, name: str, sharding: NamedSharding, dtype: Any) -> jax.Array:
        """Reads one tensor, for each device of this process its part."""
        shape = placed.shape[placed.stacked :]

        @functools.cache
        def part(key: tuple[tuple[int, int], ...]) -> np.ndarray:
            index = tuple(slice(*ends) for ends in key)
            values = _read(self._found[name], placed.block(index))
            sizes = tuple(stop - start for start, stop in key)
            return np.ascontiguousarray(placed.from_file(values, sizes)).astype(dtype, copy=False)

        def of(index: tuple[slice, ...]) -> np.ndarray:
            return part(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)))

        return jax.make_array_from_callback(shape, sharding, of)


def grouped(faults: Collection[tuple[str, str]]) -> str:
    """Joins faults, pairs of a tensor and what is wrong with it, into one line of bounded length.

    The same fault in several layers is reported once, with `*` for the layer.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, text in faults:
        kinds.setdefault((re.sub(r"\.\d+\.", ".*.", name), text), []).append(name)
    lines = [
        f"{shown(names[0] if len(names) == 1 else name)} {text}"
        + f" ({len(names)} times)" * (len(names) > 1)
        for (name, text), names in kinds.items()
    ]
    more = len(lines) - _MAX_FAULT_KINDS
    return "; ".join(lines[:_MAX_FAULT_KINDS] + [f"and {more} kinds more"] * (more > 0))


@functools.cache  # parameters of one shape share the compiled programs
def _stacking(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> tuple[Any, Any]:
    """Returns functions that make an empty stack of layers and put one layer's values into it."""

    def put(stack: jax.Array, values: jax.Array, layer: jax.Array) -> jax.Array:
        return stack.at[layer].set(values)

    empty = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
    return empty, jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _layers(names: Collection[str]) -> int:
    """Counts the layers in transformers' names of tensors."""
    return len({m[1] for name in names if (m := re.match(r"model\.layers\.(\d+)\.", name))})


def _read(slot: _Slot, block: tuple[slice, ...]) -> np.ndarray:
    # Opened again for each tensor: closing a file frees its mapped pages.
    with opened(slot.path) as file:
        return file.get_slice(slot.name)[block]
