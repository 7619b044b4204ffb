"""Tensors of a Hugging Face folder by name: which hold a parameter of the decoder, and how."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from mcr_jax.model.shape import DecoderConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

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
_OUTSIDE = {"embedding": EMBEDDING, "final_norm": "model.norm.weight", "head": HEAD}
# What wraps modules in training and stays in the names of their tensors.
_WRAPPERS = re.compile(
    r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)|^module(?=\.)"
)
_PREFIX = re.compile(r"(model\.language_model|language_model\.model|language_model|model)\.")


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


def table(config: DecoderConfig, shapes: Any) -> dict[tuple[str, ...], Placed]:
    """Every parameter by its path and where it lies in the files, in the order of the files.

    Args:
      config: of the decoder.
      shapes: its parameters, or anything with their shapes, as a nested dict.
    """
    per_layer = _LAYER | (_SANDWICH if config.sandwich_norm else {})
    made = {}
    for name in ("embedding", "layers", "final_norm", "head"):
        if name == "layers":
            for own, (theirs, inputs) in per_layer.items():
                if own in shapes["layers"]:
                    names = tuple(f"model.layers.{i}.{theirs}" for i in range(config.layers))
                    shape = tuple(shapes["layers"][own].shape)
                    made["layers", own] = Placed(shape, names, True, inputs)
        elif name in shapes:
            made[name,] = Placed(tuple(shapes[name].shape), (_OUTSIDE[name],), False, None)
    return made


def standard(name: str) -> str:
    """The name that transformers' class for language models gives a tensor.

    Folders of the model without its head have no `model.`, multimodal ones another prefix, and
    weights saved from a wrapped model have the wrapper's names in between. Names of no decoder come
    back as they are.
    """
    plain = _WRAPPERS.sub("", name).lstrip(".")
    rest = plain[m.end() :] if (m := _PREFIX.match(plain)) else plain
    if rest == HEAD:
        return HEAD
    return f"model.{rest}" if rest.startswith(("layers.", "embed_tokens.", "norm.")) else plain


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """A block of `shape`, whole but on its first axis, as a slice of its elements in a row."""
    inner = math.prod(shape[1:])
    if any((s.start, s.stop) != (0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(f"sharded on an inner axis: {index} of {shape}")
    return slice(index[0].start * inner, index[0].stop * inner)
