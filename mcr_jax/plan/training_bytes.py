"""Estimates memory per device of a training step from abstract shapes.

Parameters and optimizer state are exact: the trees of the step, sharded by `model.sharding`. The
rest is an upper estimate of XLA's allocation: activations that the backward pass reads, from the
traced forward pass of the decoder, and the largest arrays alive at one time.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.blockwise_attention import BLOCK
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, bytes_per_device, shardings
from mcr_jax.train.loss import CHUNK

_BATCH_BYTES = 5 * 4  # per token: token, target, position, segment id and weight
_STEP_COUNTER_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter on a mesh.

    Attributes:
      name: its dotted path.
      shape, dtype: of the whole array.
      spec: mesh axis of each sharded dimension.
      shard: shape on one device.
      trained: whether the optimizer updates it; with LoRA only the adapters.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    shard: tuple[int, ...]
    trained: bool

    @property
    def size(self) -> int:
        """Returns the number of elements of the whole array."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters: weights and adapters.
      optimizer: state of the optimizer, and the counters of steps.
      batch: tokens, targets, positions, segment ids and weights.
      gradients: of the trained parameters; with accumulation also their float32 sums.
      copies: of the head in the dtype of the forward pass.
      activations: saved for the backward pass by the remat policy, and gradients of the loss.
      gathered: full weights of one layer and of the larger of embedding and head, with float32
        gradients of both.
      work: temporaries of one layer, or of one chunk of logits.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    copies: int
    activations: int
    gathered: int
    work: int

    @property
    def total(self) -> int:
        """Returns the sum of all parts."""
        return sum(dataclasses.asdict(self).values())


def parameters(shape: DecoderConfig, mesh: AbstractMesh) -> tuple[Parameter, ...]:
    """Returns every parameter of a decoder with its sharding on `mesh`."""
    tree = abstract_decoder(shape)[1]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    placed = jax.tree.leaves(shardings(mesh, tree))
    return tuple(
        Parameter(
            name=_name(path),
            shape=leaf.shape,
            dtype=leaf.dtype.name,
            spec=sharding.spec,
            shard=sharding.shard_shape(leaf.shape),
            trained=_is_trained(shape, path),
        )
        for (path, leaf), sharding in zip(leaves, placed, strict=True)
    )


def memory(
    shape: DecoderConfig,
    mesh: AbstractMesh,
    *,
    rows: int,
    row_tokens: int,
    accumulate: int,
    compute: str,
    tx: optax.GradientTransformation,
    fused: bool,
) -> Memory:
    """Estimates the memory of a step of `train.step` on each device of `mesh`.

    Args:
      shape: of the decoder, with its remat policy and adapters.
      mesh: axes data, fsdp and tensor.
      rows: of a step, over all devices; a multiple of data x fsdp x accumulate.
      row_tokens: tokens of a row, padding included.
      accumulate: gradient accumulation steps.
      compute: dtype of the forward pass.
      tx: the optimizer, whose `init` gives its state.
      fused: whether attention runs in a kernel, not in plain XLA.
    """
    tree = abstract_decoder(shape)[1]
    trained, computed = _trained(shape, tree), _cast(tree, compute)
    gradients = bytes_on_device(mesh, trained)
    if accumulate > 1:  # float32 sums beside the gradients of a microbatch
        gradients = max(gradients, bytes_on_device(mesh, _cast(trained, "float32")))
        gradients += bytes_on_device(mesh, trained)

    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    part = rows // (shards * accumulate)
    local = _local(shape, mesh.shape["tensor"])
    over_fsdp = mesh.shape["fsdp"] > 1
    layer, table = _gathered(local, over_fsdp, compute)
    return Memory(
        parameters=bytes_on_device(mesh, tree),
        optimizer=bytes_on_device(mesh, jax.eval_shape(tx.init, trained)) + _STEP_COUNTER_BYTES,
        batch=rows * row_tokens * _BATCH_BYTES // shards,
        gradients=gradients,
        copies=bytes_on_device(mesh, _head(_changed(computed, tree))),
        activations=_activations(local, part, row_tokens, compute),
        gathered=layer + table,
        work=_work(local, part, row_tokens, compute, fused, over_fsdp),
    )


def _activations(local: DecoderConfig, rows: int, row_tokens: int, compute: str) -> int:
    """Returns bytes kept for the backward pass of the layers, with the loss's gradients."""
    hidden = rows * row_tokens * local.width
    head = local.vocab_size * local.width if local.lora is None else 0
    of_loss = hidden * jnp.dtype(compute).itemsize + head * 4  # the head's is summed in float32
    return rows * _kept(local, row_tokens, compute) + of_loss


def _work(
    local: DecoderConfig,
    rows: int,
    row_tokens: int,
    compute: str,
    fused: bool,
    over_fsdp: bool,
) -> int:
    """Returns the larger of a layer's temporaries and those of a chunk of logits.

    The factors count arrays alive at once, measured from XLA's allocations
    (tests/plan/test_training_bytes.py).
    """
    places, size = rows * row_tokens, jnp.dtype(compute).itemsize
    streams = (
        8 * local.width + 4 * local.heads * local.head_dim
    ) * 4  # norms and rotary embedding: float32
    inside = places * (6 * local.mlp_width * size + streams)
    if not fused:  # scores, weights and the gradients of both, for a block of queries and keys
        inside += 4 * rows * local.heads * min(BLOCK, row_tokens) ** 2 * 4
    if local.lora:
        inside += inside // 2  # of the adapters
    loss = 2 * min(CHUNK, places) * local.vocab_size * 4
    if local.lora is None:  # float32 sum of the head's gradient and a chunk's part of it
        # One of the two arrays is in `_activations`; with fsdp the other is in `_gathered`.
        loss += local.vocab_size * local.width * 4 * (1 - over_fsdp)
    return max(inside, loss)


def _gathered(local: DecoderConfig, over_fsdp: bool, compute: str) -> tuple[int, int]:
    """Returns bytes of one layer and of the larger of embedding and head, with their gradients.

    Without fsdp nothing is gathered for embedding and head.
    """
    sizes: dict[str, int] = {}
    tree = _cast(abstract_decoder(local)[1], compute)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        gradient = 4 if _is_trained(local, path) else 0
        sizes[_name(path)] = leaf.size * (leaf.dtype.itemsize + gradient)
    layer = sum(n for name, n in sizes.items() if name.startswith("layers.")) // local.layers
    table = max(sizes["embedding"], sizes.get("head", 0))
    return layer, table if over_fsdp else 0


@functools.cache
def _kept(local: DecoderConfig, row_tokens: int, compute: str) -> int:
    """Returns the residuals of the layers' forward pass for one row, in bytes.

    Residuals are the arrays that the forward pass saves for the backward pass, without weights.
    """
    graph, tree = abstract_decoder(local)
    tree = _cast(tree, compute)
    ids = jax.ShapeDtypeStruct((1, row_tokens), jnp.int32)

    def backward(params: Any, tokens: Any, positions: Any, segment_ids: Any) -> Any:
        def forward(moved: Any) -> Any:
            model = nnx.merge(graph, _merge(moved, params))
            return model.hidden(tokens, positions, segment_ids)[0]

        return jax.vjp(forward, _trained(local, params))[1]

    traced = jax.make_jaxpr(backward)(tree, ids, ids, ids).jaxpr
    read = {v for v in traced.outvars if isinstance(v, jax.extend.core.Var)} - {*traced.invars}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in read)


def _local(shape: DecoderConfig, tensor: int) -> DecoderConfig:
    """Returns the decoder shape of one device of the tensor axis."""
    sizes = {}
    if shape.kv_heads % tensor == 0:
        sizes |= {"heads": shape.heads // tensor, "kv_heads": shape.kv_heads // tensor}
    for name in ("mlp_width", "vocab_size"):
        if getattr(shape, name) % tensor == 0:
            sizes[name] = getattr(shape, name) // tensor
    # Backend and dtype of the weights do not change the residuals.
    return dataclasses.replace(shape, attention="xla", dtype="float32", **sizes)


def _cast(tree: Any, dtype: str) -> Any:
    """Casts all leaves but norms to the compute dtype, as `train.step` does."""

    def cast(path: Any, leaf: Any) -> Any:
        kept = leaf.dtype if _name(path).endswith("norm") else dtype
        return jax.ShapeDtypeStruct(leaf.shape, kept)

    return jax.tree_util.tree_map_with_path(cast, tree)


def _head(tree: Any) -> Any:
    """Returns the output projection: the head, or the tied embedding."""
    return tree["head"] if "head" in tree else tree["embedding"]


def _changed(tree: Any, before: Any) -> Any:
    """Returns the leaves with another dtype than `before`; None for the others."""
    return jax.tree.map(lambda x, y: None if x.dtype == y.dtype else x, tree, before)


def _trained(shape: DecoderConfig, tree: Any) -> Any:
    """Returns the trained leaves; None for the others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _is_trained(shape, path) else None, tree
    )


def _merge(first: Any, second: Any) -> Any:
    """Returns the leaves of `first`, or those of `second` where it has None."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, first, second, is_leaf=lambda x: x is None
    )


def _is_trained(shape: DecoderConfig, path: Any) -> bool:
    return shape.lora is None or _name(path).endswith(("_lora_a", "_lora_b"))


def bytes_on_device(mesh: AbstractMesh, tree: Any) -> int:
    """Returns bytes of a tree on one device of `mesh`, sharded by `model.sharding`."""
    return bytes_per_device(abstract(tree, shardings(mesh, tree)))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
