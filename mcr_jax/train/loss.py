"""Cross-entropy on the trained tokens, as a sum and a count.

Sums, not means, so that microbatches, hosts and packed rows of unequal length add up exactly.

Dimensions: B rows, T tokens of a row, N tokens of one shard, V vocabulary, E width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from mcr_jax.model.decoder import narrow

CHUNK = 512  # trained tokens per product with the head
ROWS = ("data", "fsdp")  # mesh axes that shard the rows of a batch

Batch = dict[str, jax.Array]  # tokens, targets, positions, segment_ids: int; weights: float [B, T]


def trained_loss(
    head: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed cross-entropy of hidden @ head.T and the sum of `weights`.

    Only the trained tokens go through the head, in chunks: logits exist for one chunk at a time
    and are computed once, because the forward pass also computes the gradients that are needed and
    the backward pass scales them. A frozen `head`, and validation, need none.

    The product is in the dtype of `hidden`. The gradient of the head is summed in float32, over
    tokens and shards, and then cast to the head's dtype.

    Under a mesh (`jax.set_mesh`) with axes "data" and "fsdp" every shard gathers the trained tokens
    of its own rows, and the gradient of the head is reduced once: scattered over fsdp like the
    head, where that divides its width.

    Args:
      head: [V, E].
      hidden: [B, T, E].
      targets, weights: [B, T].
    """
    return _sum(head, hidden, targets, weights), jnp.sum(weights)


@jax.custom_vjp
def _sum(head, hidden, targets, weights) -> jax.Array:
    return _with_gradients(head, hidden, targets, weights, ())[0]


def _forward(head, hidden, targets, weights):
    needed = tuple(name for name, x in (("head", head), ("hidden", hidden)) if x.perturbed)
    loss, gradients = _with_gradients(*(x.value for x in (head, hidden, targets, weights)), needed)
    return loss, gradients


def _backward(gradients, d_loss):
    def scaled(name: str):
        g = gradients.get(name)
        return None if g is None else (g * d_loss).astype(g.dtype)

    return scaled("head"), scaled("hidden"), None, None


_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _with_gradients(head, hidden, targets, weights, needed: tuple[str, ...]):
    """Returns the summed loss, and its gradients by name: of "head" and "hidden" if in `needed`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = [a for a in ROWS if kinds.get(a, AxisType.Manual) != AxisType.Manual]
    axes = tuple(a for a in free if mesh.shape[a] > 1)
    one_shard = functools.partial(_one_shard, needed=needed)
    dtype, head = head.dtype, head.astype(hidden.dtype)
    if not axes or weights.shape[0] % math.prod(mesh.shape[a] for a in axes):
        return _narrowed(one_shard(head, hidden, targets, weights), dtype)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    scattered = "fsdp" in axes and head.shape[1] % mesh.shape["fsdp"] == 0
    places = {"head": PartitionSpec(None, "fsdp") if scattered else whole, "hidden": rows}
    summed = jax.shard_map(
        functools.partial(one_shard, axes=axes, scattered=scattered),
        in_specs=(whole, rows, rows, rows),
        out_specs=(whole, {name: places[name] for name in needed}),
        axis_names=set(axes),
        check_vma=False,  # sums start as constants and then differ between shards
    )(head, hidden, targets, weights)
    return _narrowed(summed, dtype)


def _narrowed(summed, dtype):
    loss, gradients = summed
    if "head" in gradients:
        gradients = gradients | {"head": narrow(gradients["head"], dtype)}
    return loss, gradients


def _one_shard(head, hidden, targets, weights, *, needed, axes=(), scattered=False):
    V, E = head.shape
    N = weights.size
    size = min(CHUNK, N)
    hidden_NxE, targets, weights = hidden.reshape(N, E), targets.reshape(N), weights.reshape(N)
    order = jnp.argsort(weights == 0, stable=True)  # the trained tokens first
    order = jnp.pad(order, (0, -N % size), constant_values=N)  # N is out of range
    chunks = -(-jnp.count_nonzero(weights) // size)
    if axes:  # the same number of chunks on every shard
        chunks = jax.lax.pmax(chunks, axes)

    def add(chunk, sums):
        loss, gradients = sums
        places = jax.lax.dynamic_slice(order, (chunk * size,), (size,))
        x, target, weight = (
            jnp.take(a, places, axis=0, mode="fill", fill_value=0)
            for a in (hidden_NxE, targets, weights)
        )
        logits = jnp.einsum("ne,ve->nv", x, head, preferred_element_type=jnp.float32)
        top = logits.max(axis=-1, keepdims=True)
        total = jnp.exp(logits - top).sum(axis=-1, keepdims=True)
        of_target = jnp.take_along_axis(logits, target[:, None], axis=-1)
        loss += jnp.sum((jnp.log(total) + top - of_target)[:, 0] * weight)
        if needed:
            softmax = jnp.exp(logits - top) * (weight[:, None] / total)
            d_logits = jnp.where(
                jnp.arange(V) == target[:, None], softmax - weight[:, None], softmax
            )
            d_logits = d_logits.astype(hidden.dtype)
        if "hidden" in needed:
            d_x = d_logits @ head
            gradients |= {"hidden": gradients["hidden"].at[places].set(d_x, mode="drop")}
        if "head" in needed:
            d_head = jnp.einsum("nv,ne->ve", d_logits, x, preferred_element_type=jnp.float32)
            gradients |= {"head": gradients["head"] + d_head}
        return loss, gradients

    start = {"hidden": jnp.zeros_like(hidden_NxE), "head": jnp.zeros((V, E), jnp.float32)}
    zeros = jnp.float32(0), {name: start[name] for name in needed}
    loss, gradients = jax.lax.fori_loop(0, chunks, add, zeros)
    if axes:
        loss = jax.lax.psum(loss, axes)
    if "hidden" in needed:
        gradients["hidden"] = gradients["hidden"].reshape(hidden.shape)
    if "head" in needed and axes:
        summed, over = gradients["head"], axes
        if scattered:
            summed = jax.lax.psum_scatter(summed, "fsdp", scatter_dimension=1, tiled=True)
            over = tuple(axis for axis in axes if axis != "fsdp")
        gradients["head"] = jax.lax.psum(summed, over) if over else summed
    return loss, gradients
