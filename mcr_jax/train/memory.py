"""Bytes per device that a training step needs, told from shapes alone: no weights, no devices.

What lies there between steps (parameters, optimizer state) is exact: the trees of the step itself,
cut by the rules of `model.sharding`. What a step adds is an upper estimate of what XLA allocates:
the arrays that the backward pass reads are read off the traced forward pass of the decoder, the
rest counts the largest arrays that exist at a time.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from mcr_jax.model._blockwise import BLOCKS
from mcr_jax.model.blueprint import blueprint
from mcr_jax.model.config import DecoderConfig
from mcr_jax.model.sharding import shardings
from mcr_jax.train.loss import CHUNK
from mcr_jax.train.step import optimizer

_BATCH_FIELDS = 5  # tokens, targets, positions, segment ids, weights: four bytes each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter on a mesh.

    Attributes:
      name: its dotted path.
      shape, dtype: of the whole array.
      spec: which mesh axis cuts which dimension.
      shard: the shape that one device holds.
      trained: whether the optimizer moves it; with LoRA only the adapters are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    shard: tuple[int, ...]
    trained: bool

    @property
    def size(self) -> int:
        """Numbers in the whole array."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters: weights and adapters, in the dtypes they are kept in.
      optimizer: both moments of what is trained, and counters.
      gradients: of what is trained; with accumulation their float32 sums, too.
      copies: of the weights in the dtype that the forward pass computes in.
      activations: what the layers keep for the backward pass, by remat policy; and the batch.
      layer: one layer at work: its weights gathered over fsdp with their gradients, and
        everything that is computed anew in it.
      head: embedding table and head gathered, their gradients, and one chunk of logits.
    """

    parameters: int
    optimizer: int
    gradients: int
    copies: int
    activations: int
    layer: int
    head: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return sum(dataclasses.asdict(self).values())


def parameters(shape: DecoderConfig, mesh: AbstractMesh) -> tuple[Parameter, ...]:
    """Every parameter of a decoder and how it lies on `mesh`."""
    tree = _shapes(shape)
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
    mu_dtype: str,
    flash: bool,
) -> Memory:
    """What a step of `train.step` needs on each device of `mesh`.

    Args:
      shape: of the decoder, with its remat policy and adapters.
      mesh: axes data, fsdp and tensor.
      rows: of a step, over all devices; a multiple of data x fsdp x accumulate.
      row_tokens: places of a row.
      accumulate: parts that the rows go through the devices in.
      compute: dtype of the forward pass.
      mu_dtype: of the optimizer's mean of gradients.
      flash: whether attention is a kernel that keeps no scores in memory.
    """
    tree = _shapes(shape)
    trained = _select(shape, tree, trained=True)
    weights, trained_bytes = _bytes(mesh, tree), _bytes(mesh, trained)
    tx = optimizer(
        **{"learning_rate": 1.0, "warmup_steps": 0, "steps": 1, "weight_decay": 0.0},
        **{"clip_norm": 1.0, "b1": 0.9, "b2": 0.99, "mu_dtype": mu_dtype},
    )[0]
    computed = _cast(tree, compute)
    copies = _bytes(mesh, _changed(computed, tree))
    part_gradients = _bytes(mesh, _select(shape, computed, trained=True))
    gradients = trained_bytes
    if accumulate > 1:  # the sums so far beside the gradients of the part at hand
        gradients = max(trained_bytes, _bytes(mesh, _cast(trained, "float32"))) + part_gradients

    size = jnp.dtype(compute).itemsize
    part = rows // (mesh.shape["data"] * mesh.shape["fsdp"] * accumulate)
    local = _local(shape, mesh.shape["tensor"])
    places = part * row_tokens
    kept = _kept(local, part, row_tokens, compute)
    kept += places * shape.width * size  # the hidden states in chunks
    batch = rows * row_tokens * _BATCH_FIELDS * 4 // (mesh.shape["data"] * mesh.shape["fsdp"])
    anew = _kept(dataclasses.replace(local, remat="none"), part, row_tokens, compute)
    working = anew // shape.layers
    if not flash:  # scores, weights and their gradients of one block of queries
        block = -(-row_tokens // BLOCKS)
        working += 4 * part * local.heads * block * row_tokens * 4
    gathered = _gathered(local, mesh.shape["fsdp"] > 1, compute)
    tables = sum(gathered[name] for name in ("embedding", "head") if name in gathered)
    one_layer = sum(n for name, n in gathered.items() if name.startswith("layers.")) // shape.layers
    chunk = 3 * part * min(CHUNK, row_tokens) * local.vocab_size * 4  # logits, softmax, gradient
    return Memory(
        parameters=weights,
        optimizer=_bytes(mesh, jax.eval_shape(tx.init, trained)),
        gradients=gradients,
        copies=copies,
        activations=kept + batch,
        layer=one_layer + working,
        head=tables + chunk,
    )


def _gathered(local: DecoderConfig, over_fsdp: bool, compute: str) -> dict[str, int]:
    """Bytes of each parameter where all of it is at hand, with its gradient where it has one.

    Without fsdp the tables are read where they lie.
    """
    tree = _cast(_shapes(local), compute)
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, copies = _name(path), 1 + _is_trained(local, path)
        if name.startswith("layers.") or over_fsdp:
            sizes[name] = copies * leaf.size * leaf.dtype.itemsize
    return sizes


def _kept(local: DecoderConfig, rows: int, row_tokens: int, compute: str) -> int:
    """Bytes that the layers keep of a forward pass over [rows, row_tokens] for the backward pass.

    The results of the traced forward pass that its transpose reads, other than the weights.
    """
    graph, tree = blueprint(local)[0], _cast(_shapes(local), compute)
    ids = jax.ShapeDtypeStruct((rows, row_tokens), jnp.int32)

    def backward(params: Any, tokens: Any, positions: Any, segment_ids: Any) -> Any:
        def forward(trained: Any) -> Any:
            model = nnx.merge(graph, _merge(trained, params))
            return model.hidden(tokens, positions, segment_ids)[0]

        return jax.vjp(forward, _select(local, params, trained=True))[1]

    traced = jax.make_jaxpr(backward)(tree, ids, ids, ids).jaxpr
    given = set(traced.invars)
    read = {v for v in traced.outvars if isinstance(v, jax.extend.core.Var) and v not in given}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in read)


def _local(shape: DecoderConfig, tensor: int) -> DecoderConfig:
    """One device's part of a decoder that is cut over the tensor axis, where that divides it."""
    cut = {}
    if shape.kv_heads % tensor == 0:
        cut |= {"heads": shape.heads // tensor, "kv_heads": shape.kv_heads // tensor}
    for name in ("mlp_width", "vocab_size"):
        if getattr(shape, name) % tensor == 0:
            cut[name] = getattr(shape, name) // tensor
    return dataclasses.replace(shape, attention="xla", **cut)


def _shapes(shape: DecoderConfig) -> Any:
    """The parameters' shapes, the adapters' in float32."""

    def kept(path: Any, leaf: Any) -> Any:
        dtype = "float32" if _is_adapter(path) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(kept, blueprint(shape)[1])


def _cast(tree: Any, dtype: str) -> Any:
    """What `train.step` hands to the decoder: all but the norms in `dtype`."""

    def cast(path: Any, leaf: Any) -> Any:
        kept = leaf.dtype if _name(path).endswith("norm") else dtype
        return jax.ShapeDtypeStruct(leaf.shape, kept)

    return jax.tree_util.tree_map_with_path(cast, tree)


def _changed(tree: Any, before: Any) -> Any:
    """The leaves whose dtype is not what it was; None stands for the others."""
    return jax.tree.map(lambda x, y: None if x.dtype == y.dtype else x, tree, before)


def _select(shape: DecoderConfig, tree: Any, *, trained: bool) -> Any:
    """The leaves that are trained, or those that are not; None stands for the others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _is_trained(shape, path) == trained else None, tree
    )


def _merge(first: Any, second: Any) -> Any:
    """The leaves of `first`, and where it has None those of `second`."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, first, second, is_leaf=lambda x: x is None
    )


def _is_trained(shape: DecoderConfig, path: Any) -> bool:
    return shape.lora is None or _is_adapter(path)


def _is_adapter(path: Any) -> bool:
    return _name(path).endswith(("_lora_a", "_lora_b"))


def _bytes(mesh: AbstractMesh, tree: Any) -> int:
    """What one device holds of a tree."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shardings(mesh, tree)), strict=True
        )
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
