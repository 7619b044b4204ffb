"""Cross-entropy on the tokens that are trained, as a sum and a count.

Sums, not means: microbatches, hosts and packed rows of unequal length then add up exactly.

Dimensions: B rows, T tokens of a row, N places of one shard, V vocabulary, E width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from mcr_jax.model.decoder import narrow

CHUNK = 512  # trained tokens that the head reads at a time
ROWS = ("data", "fsdp")  # the mesh axes that rows of a batch lie over

Batch = dict[str, jax.Array]  # tokens, targets, positions, segment_ids: int; weights: float [B, T]


def trained_loss(
    head: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of hidden @ head.T, without the logits that nothing is trained on.

    The product is made in the dtype of `hidden`; the gradient of the head is a float32 sum, over
    places and over shards, and only then takes the head's own dtype.

    The trained places go through the head in chunks, and no others do. Logits exist for one chunk
    at a time and are computed once: where a gradient is asked for, it is made beside the loss, and
    the backward pass only scales it. Only what is differentiated costs anything: not `head` where
    it is frozen, and neither in validation.

    Under a mesh (`jax.set_mesh`) with axes "data" and "fsdp" every shard brings its own rows'
    places together, and the gradient of the head is summed over the shards once: scattered over
    fsdp as the head itself is, where that divides its width.

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
    asked = tuple(name for name, x in (("head", head), ("hidden", hidden)) if x.perturbed)
    loss, gradients = _with_gradients(*(x.value for x in (head, hidden, targets, weights)), asked)
    return loss, gradients


def _backward(gradients, d_loss):
    def scaled(name: str):
        g = gradients.get(name)
        return None if g is None else (g * d_loss).astype(g.dtype)

    return scaled("head"), scaled("hidden"), None, None


_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _with_gradients(head, hidden, targets, weights, asked: tuple[str, ...]):
    """The summed loss, and a dict of its gradients by those of "head" and "hidden" in `asked`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = [a for a in ROWS if kinds.get(a, AxisType.Manual) != AxisType.Manual]
    axes = tuple(a for a in free if mesh.shape[a] > 1)
    one_shard = functools.partial(_one_shard, asked=asked)
    dtype, head = head.dtype, head.astype(hidden.dtype)
    if not axes or weights.shape[0] % math.prod(mesh.shape[a] for a in axes):
        return _narrowed(one_shard(head, hidden, targets, weights), dtype)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    scattered = "fsdp" in axes and head.shape[1] % mesh.shape["fsdp"] == 0
    places = {"head": PartitionSpec(None, "fsdp") if scattered else whole, "hidden": rows}
    summed = jax.shard_map(
        functools.partial(one_shard, axes=axes, scattered=scattered),
        in_specs=(whole, rows, rows, rows),
        out_specs=(whole, {name: places[name] for name in asked}),
        axis_names=set(axes),
        check_vma=False,  # the loop's sums start as constants and then differ between shards
    )(head, hidden, targets, weights)
    return _narrowed(summed, dtype)


def _narrowed(summed, dtype):
    loss, gradients = summed
    if "head" in gradients:
        gradients = gradients | {"head": narrow(gradients["head"], dtype)}
    return loss, gradients


def _one_shard(head, hidden, targets, weights, *, asked, axes=(), scattered=False):
    V, E = head.shape
    N = weights.size
    size = min(CHUNK, N)
    hidden_NxE, targets, weights = hidden.reshape(N, E), targets.reshape(N), weights.reshape(N)
    order = jnp.argsort(weights == 0, stable=True)  # the trained places first
    order = jnp.pad(order, (0, -N % size), constant_values=N)  # N: nowhere
    chunks = -(-jnp.count_nonzero(weights) // size)
    if axes:  # as many turns on every shard, so that they stay in step
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
        if asked:
            softmax = jnp.exp(logits - top) * (weight[:, None] / total)
            d_logits = jnp.where(
                jnp.arange(V) == target[:, None], softmax - weight[:, None], softmax
            )
            d_logits = d_logits.astype(hidden.dtype)
        if "hidden" in asked:
            d_x = d_logits @ head
            gradients |= {"hidden": gradients["hidden"].at[places].set(d_x, mode="drop")}
        if "head" in asked:
            d_head = jnp.einsum("nv,ne->ve", d_logits, x, preferred_element_type=jnp.float32)
            gradients |= {"head": gradients["head"] + d_head}
        return loss, gradients

    start = {"hidden": jnp.zeros_like(hidden_NxE), "head": jnp.zeros((V, E), jnp.float32)}
    nothing = jnp.float32(0), {name: start[name] for name in asked}
    loss, gradients = jax.lax.fori_loop(0, chunks, add, nothing)
    if axes:
        loss = jax.lax.psum(loss, axes)
    if "hidden" in asked:
        gradients["hidden"] = gradients["hidden"].reshape(hidden.shape)
    if "head" in asked and axes:
        summed, over = gradients["head"], axes
        if scattered:
            summed = jax.lax.psum_scatter(summed, "fsdp", scatter_dimension=1, tiled=True)
            over = tuple(axis for axis in axes if axis != "fsdp")
        gradients["head"] = jax.lax.psum(summed, over) if over else summed
    return loss, gradients
