"""Tensors of a Hugging Face folder: names, and the place of each parameter in them."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mcr_jax.model.families import layer_tensors
from mcr_jax.model.shape import PROJECTIONS, DecoderConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_OUTSIDE = {"embedding": EMBEDDING, "final_norm": "model.norm.weight", "head": HEAD}
# Wrappers of modules in training, which stay in the names of saved tensors.
_WRAPPERS = re.compile(
    r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)|^module(?=\.)"
)
_PREFIX = re.compile(r"(model\.language_model|language_model\.model|language_model|model)\.")


@dataclasses.dataclass(frozen=True)
class Placed:
    """Place of one parameter in a folder's files.

    Attributes:
      shape: of the parameter; with `stacked`, axis 0 is the layer.
      names: of the tensors that hold it, one per layer if stacked, else one.
      stacked: whether it belongs to the layers.
      inputs: number of its axes, after the layer's, that are the columns of the file's matrix; None
        where the file has the same order.
      start: first row, and column, of it in a tensor that holds other parameters, too.
      whole: shape of such a tensor; () where it is alone in its own.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    inputs: int | None
    start: tuple[int, ...] = (0, 0)
    whole: tuple[int, ...] = ()

    @property
    def own(self) -> tuple[int, ...]:
        """Shape of one layer of it as the files have it."""
        shape = self.shape[self.stacked :]
        if self.inputs is None:
            return (math.prod(shape),) if self.stacked else shape
        return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])

    @property
    def in_file(self) -> tuple[int, ...]:
        """Shape of each tensor in the files."""
        return self.whole or self.own

    @property
    def region(self) -> tuple[slice, ...]:
        """Part of a tensor in the files that holds one layer of it."""
        return self._moved(slice(0, size) for size in self.own)

    def from_file(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turns a part of a file's tensor into this parameter's order, in `shape`."""
        return (matrix if self.inputs is None else matrix.T).reshape(shape)

    def to_file(self, values: np.ndarray, tensor: np.ndarray | None = None) -> np.ndarray:
        """Puts one layer's values into the file's tensor, or into zeros if that is None."""
        flat = values.reshape(self.own if self.inputs is None else self.own[::-1])
        own = np.ascontiguousarray(flat if self.inputs is None else flat.T)
        if not self.whole:
            return own
        tensor = np.zeros(self.whole, own.dtype) if tensor is None else tensor
        tensor[self.region] = own
        return tensor

    def block(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Returns the block of a tensor in the files that holds `index` of one layer."""
        shape = self.shape[self.stacked :]
        if self.inputs is None:
            return self._moved((_flat(index, shape),) if self.stacked else index)
        cut = self.inputs
        return self._moved((_flat(index[cut:], shape[cut:]), _flat(index[:cut], shape[:cut])))

    def _moved(self, own: Iterable[slice]) -> tuple[slice, ...]:
        pairs = zip(own, self.start, strict=False)
        return tuple(slice(part.start + start, part.stop + start) for part, start in pairs)


def table(config: DecoderConfig, shapes: Any) -> dict[tuple[str, ...], Placed]:
    """Places every parameter, by its path, in the files; in the order of the files.

    Args:
      config: of the decoder.
      shapes: its parameters, or anything with their shapes, as a nested dict.
    """
    places = {}
    for own, tensor in layer_tensors(config).items():
        if own in shapes["layers"]:
            names = tuple(f"model.layers.{i}.{tensor}" for i in range(config.layers))
            inputs = len(config.projection(own)[0]) if own in PROJECTIONS else None
            shape = tuple(shapes["layers"][own].shape)
            places["layers", own] = Placed(shape, names, True, inputs)
    rows = fused_rows({path: (place.names, place.own[0]) for path, place in places.items()})
    for path, (first, total) in rows.items():
        if total > places[path].own[0]:
            whole = (total, *places[path].own[1:])
            places[path] = dataclasses.replace(places[path], start=(first, 0), whole=whole)
    outside = {
        (own,): Placed(tuple(shapes[own].shape), (name,), False, None)
        for own, name in _OUTSIDE.items()
        if own in shapes
    }
    return places | outside


def fused_rows(parts: Mapping[Any, tuple[Any, int]]) -> dict[Any, tuple[int, int]]:
    """Returns the first row of each part in its tensor, and how many rows that tensor has.

    Args:
      parts: tensor and rows of each; those of one tensor lie in it in this order.
    """
    firsts, totals = {}, {}
    for part, (tensor, rows) in parts.items():
        firsts[part] = totals.get(tensor, 0)
        totals[tensor] = firsts[part] + rows
    return {part: (firsts[part], totals[tensor]) for part, (tensor, _) in parts.items()}


def standard(name: str) -> str:
    """Returns the name of a tensor in transformers' class for language models.

    Folders of the model without its head have no `model.`, multimodal ones another prefix, and
    weights saved from a wrapped model have the wrapper's names in between. Other names are returned
    unchanged.
    """
    plain = _WRAPPERS.sub("", name).lstrip(".")
    rest = plain[m.end() :] if (m := _PREFIX.match(plain)) else plain
    if rest == HEAD:
        return HEAD
    return f"model.{rest}" if rest.startswith(("layers.", "embed_tokens.", "norm.")) else plain


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """Flattens the index of a block that is whole but on its first axis."""
    inner = math.prod(shape[1:])
    if any((s.start, s.stop) != (0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(f"sharded on an inner axis: {index} of {shape}")
    return slice(index[0].start * inner, index[0].stop * inner)
