"""Bytes per device that a training step needs, told from shapes alone: no weights, no devices.

What lies there between steps (parameters, optimizer state) is exact: the trees of the step itself,
cut by the rules of `model.sharding`. What a step adds is an upper estimate of what XLA allocates:
the arrays that the backward pass reads are read off the traced forward pass of the decoder, the
rest counts the largest arrays that exist at a time.
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

from mcr_jax.model.blockwise_attention import BLOCK
from mcr_jax.model.blueprint import blueprint
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, bytes_per_device, shardings
from mcr_jax.train.loss import CHUNK

_BATCH = 5 * 4  # bytes a place: token, target, position, segment id and weight
_COUNTER = 4  # the step


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
      optimizer: state of the optimizer for what is trained, and the counters of steps.
      batch: tokens, targets, positions, segment ids and weights.
      gradients: of what is trained; with accumulation their float32 sums, too.
      copies: of the head in the dtype that the forward pass computes in.
      activations: what waits for the backward pass: by remat policy what the layers keep, and
        the gradients that the loss leaves.
      gathered: the weights of one layer and the larger table, whole, and their float32 gradients.
      work: what is computed at a time: one layer from the inside, or one chunk of logits.
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
        """All of it at once."""
        return sum(dataclasses.asdict(self).values())


def parameters(shape: DecoderConfig, mesh: AbstractMesh) -> tuple[Parameter, ...]:
    """Every parameter of a decoder and how it lies on `mesh`."""
    tree = blueprint(shape)[1]
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
    """What a step of `train.step` needs on each device of `mesh`.

    Args:
      shape: of the decoder, with its remat policy and adapters.
      mesh: axes data, fsdp and tensor.
      rows: of a step, over all devices; a multiple of data x fsdp x accumulate.
      row_tokens: places of a row.
      accumulate: parts that the rows go through the devices in.
      compute: dtype of the forward pass.
      tx: the optimizer; its state is counted from its own `init`.
      fused: whether attention runs in a kernel of the device, not in plain XLA.
    """
    tree = blueprint(shape)[1]
    trained, computed = _trained(shape, tree), _cast(tree, compute)
    gradients = bytes_on_device(mesh, trained)
    if accumulate > 1:  # the sums so far beside the gradients of the part at hand
        gradients = max(gradients, bytes_on_device(mesh, _cast(trained, "float32")))
        gradients += bytes_on_device(mesh, trained)

    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    part = rows // (shards * accumulate)
    local = _local(shape, mesh.shape["tensor"])
    over_fsdp = mesh.shape["fsdp"] > 1
    layer, table = _gathered(local, over_fsdp, compute)
    return Memory(
        parameters=bytes_on_device(mesh, tree),
        optimizer=bytes_on_device(mesh, jax.eval_shape(tx.init, trained)) + _COUNTER,
        batch=rows * row_tokens * _BATCH // shards,
        gradients=gradients,
        copies=bytes_on_device(mesh, _head(_changed(computed, tree))),
        activations=_activations(local, part, row_tokens, compute),
        gathered=layer + table,
        work=_work(local, part, row_tokens, compute, fused, over_fsdp),
    )


def _activations(local: DecoderConfig, rows: int, row_tokens: int, compute: str) -> int:
    """What waits for the backward pass of the layers: what they kept, and the loss's gradients."""
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
    """The most that is computed at a time: a layer with all of its insides, or a chunk of logits.

    Numbers of arrays alive at once as found in XLA (tests/plan/test_training_bytes.py).
    """
    places, size = rows * row_tokens, jnp.dtype(compute).itemsize
    streams = (8 * local.width + 4 * local.heads * local.head_dim) * 4  # norms and rotary: float32
    inside = places * (6 * local.mlp_width * size + streams)
    if not fused:  # scores, weights and the gradients of both, of a block of queries and of keys
        inside += 4 * rows * local.heads * min(BLOCK, row_tokens) ** 2 * 4
    if local.lora:
        inside += inside // 2  # what the adapters add beside the products
    loss = 2 * min(CHUNK, places) * local.vocab_size * 4
    if local.lora is None:  # the head's gradient so far and a chunk's, both in float32
        # One of them becomes what `_activations` counts, and over fsdp `_gathered` has room, too.
        loss += local.vocab_size * local.width * 4 * (1 - over_fsdp)
    return max(inside, loss)


def _gathered(local: DecoderConfig, over_fsdp: bool, compute: str) -> tuple[int, int]:
    """Bytes of one layer and of the larger table, whole, with gradients where they have them.

    Without fsdp the tables are read where they lie.
    """
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_cast(blueprint(local)[1], compute)):
        gradient = 4 if _is_trained(local, path) else 0
        sizes[_name(path)] = leaf.size * (leaf.dtype.itemsize + gradient)
    layer = sum(n for name, n in sizes.items() if name.startswith("layers.")) // local.layers
    table = max(sizes["embedding"], sizes.get("head", 0))
    return layer, table if over_fsdp else 0


@functools.cache
def _kept(local: DecoderConfig, row_tokens: int, compute: str) -> int:
    """Bytes that the layers keep of the forward pass of one row for the backward pass.

    These are the results of the traced forward pass that its transpose reads, but for the weights.
    """
    graph, tree = blueprint(local)
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
    """One device's part of a decoder that is cut over the tensor axis, where that divides it."""
    cut = {}
    if shape.kv_heads % tensor == 0:
        cut |= {"heads": shape.heads // tensor, "kv_heads": shape.kv_heads // tensor}
    for name in ("mlp_width", "vocab_size"):
        if getattr(shape, name) % tensor == 0:
            cut[name] = getattr(shape, name) // tensor
    # Neither backend nor the dtype that weights are kept in changes what a layer keeps.
    return dataclasses.replace(shape, attention="xla", dtype="float32", **cut)


def _cast(tree: Any, dtype: str) -> Any:
    """The dtypes that `train.step` computes with: `dtype` of all but the norms."""

    def cast(path: Any, leaf: Any) -> Any:
        kept = leaf.dtype if _name(path).endswith("norm") else dtype
        return jax.ShapeDtypeStruct(leaf.shape, kept)

    return jax.tree_util.tree_map_with_path(cast, tree)


def _head(tree: Any) -> Any:
    """The table that makes logits, alone."""
    return tree["head"] if "head" in tree else tree["embedding"]


def _changed(tree: Any, before: Any) -> Any:
    """The leaves whose dtype is not what it was; None stands for the others."""
    return jax.tree.map(lambda x, y: None if x.dtype == y.dtype else x, tree, before)


def _trained(shape: DecoderConfig, tree: Any) -> Any:
    """The leaves that are trained; None stands for the others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _is_trained(shape, path) else None, tree
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


def bytes_on_device(mesh: AbstractMesh, tree: Any) -> int:
    """Bytes of a tree on one device of `mesh`, sharded by the rules of `model.sharding`."""
    return bytes_per_device(abstract(tree, shardings(mesh, tree)))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
