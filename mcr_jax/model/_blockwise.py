"""Attention in plain XLA: the reference, and what runs wherever no faster kernel does.

Queries go in static blocks, each with the keys that any of its queries sees and no others. The
backward pass computes the weights anew from each query's largest score and sum (after Dao et al.,
2022), so that what a layer keeps grows with T, not with T squared.

Dimensions: B batch, T tokens, S keys, H query heads, K key heads, G = H / K, D head size.
"""

import functools

import jax
import jax.numpy as jnp

BLOCKS, MIN_BLOCK = 8, 64
MASKED = -1e30  # finite: a fully masked row gives a uniform softmax, never NaN
F32 = {"preferred_element_type": jnp.float32}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids) -> jax.Array:
    """What `mcr_jax.model.attention.attention` returns."""
    return _forward(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids)[0]


def _forward(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids):
    q = _grouped(q_BxTxHxD, k_BxTxKxD.shape[2])
    k, v = k_BxTxKxD.swapaxes(1, 2), v_BxTxKxD.swapaxes(1, 2)
    outs, tops, totals = [], [], []
    for first, start, stop in _blocks(q.shape[3], window):
        queries = q[:, :, :, start:stop]
        scores = _products(queries, k[:, :, first:stop]) * scale
        scores = jnp.where(visible(first, start, stop, window, segment_ids), scores, MASKED)
        top = scores.max(axis=-1, keepdims=True)
        weights = _merged(jnp.exp(scores - top))
        # The division by the sum comes after the product: on D numbers per query instead of S.
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("bkqs,bksd->bkqd", weights.astype(v.dtype), v[:, :, first:stop], **F32)
        outs.append((out / total).astype(v.dtype).reshape(queries.shape))
        tops.append(top)
        totals.append(total.reshape(top.shape))
    out = _ungrouped(jnp.concatenate(outs, axis=3))
    norms = jnp.concatenate(tops, axis=3), jnp.concatenate(totals, axis=3)
    return out, (q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids, out, norms)


def _backward(window, scale, kept, d_out_BxTxHxD):
    q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids, out_BxTxHxD, (top, total) = kept
    T, K = k_BxTxKxD.shape[1:3]
    q, k, v = _grouped(q_BxTxHxD, K), k_BxTxKxD.swapaxes(1, 2), v_BxTxKxD.swapaxes(1, 2)
    out, d_out = (_grouped(x, K).astype(jnp.float32) for x in (out_BxTxHxD, d_out_BxTxHxD))
    d_out /= total  # here once, not on every weight
    overlap = (out * d_out).sum(axis=-1, keepdims=True)
    d_out = d_out.astype(v.dtype)
    d_queries, d_keys, d_values = [], 0.0, 0.0
    for first, start, stop in _blocks(T, window):
        queries, d_outs = q[:, :, :, start:stop], d_out[:, :, :, start:stop]
        keys, values = k[:, :, first:stop], v[:, :, first:stop]
        scores = _products(queries, keys) * scale
        scores = jnp.where(visible(first, start, stop, window, segment_ids), scores, MASKED)
        weights = jnp.exp(scores - top[:, :, :, start:stop])
        d_scores = weights * (_products(d_outs, values) - overlap[:, :, :, start:stop]) * scale
        weights, d_scores = _merged(weights.astype(v.dtype)), _merged(d_scores.astype(q.dtype))
        d_query = jnp.einsum("bkqs,bksd->bkqd", d_scores, keys, **F32)
        d_key = jnp.einsum("bkqs,bkqd->bksd", d_scores, _merged(queries), **F32)
        d_value = jnp.einsum("bkqs,bkqd->bksd", weights, _merged(d_outs), **F32)
        d_queries.append(d_query.reshape(queries.shape))
        room = ((0, 0), (0, 0), (first, T - stop), (0, 0))
        d_keys, d_values = d_keys + jnp.pad(d_key, room), d_values + jnp.pad(d_value, room)
    return (
        _ungrouped(jnp.concatenate(d_queries, axis=3)).astype(q.dtype),
        d_keys.swapaxes(1, 2).astype(k.dtype),
        d_values.swapaxes(1, 2).astype(v.dtype),
        None,
    )


attention.defvjp(_forward, _backward)


def visible(first: int, start: int, stop: int, window: int | None, segment_ids) -> jax.Array:
    """bool [B or 1, 1, 1, queries start..stop, keys first..stop]: the query may see the key."""
    query, key = jnp.arange(start, stop)[:, None], jnp.arange(first, stop)
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    if segment_ids is None:
        return seen[None, None, None]
    same = segment_ids[:, start:stop, None] == segment_ids[:, None, first:stop]
    return (seen & same)[:, None, None]


def _blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first key, first query, end of both) of every block."""
    # A window bounds the keys of a block, so smaller blocks save more of them.
    most = BLOCKS if window is None else 4 * BLOCKS
    size = max(MIN_BLOCK, -(-length // most))
    size += -size % 16
    return [
        (
            0 if window is None else max(0, start - window + 1) // MIN_BLOCK * MIN_BLOCK,
            start,
            min(start + size, length),
        )
        for start in range(0, length, size)
    ]


def _grouped(x_BxTxHxD, K: int) -> jax.Array:
    B, T, H, D = x_BxTxHxD.shape
    return x_BxTxHxD.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)


def _ungrouped(x_BxKxGxTxD) -> jax.Array:
    B, K, G, T, D = x_BxKxGxTxD.shape
    return x_BxKxGxTxD.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, D)


def _products(x_BxKxGxTxD, y_BxKxSxD) -> jax.Array:
    """Inner products over D, float32 [B, K, G, T, S], the group's queries in one matrix."""
    B, K, G, T, D = x_BxKxGxTxD.shape
    x = x_BxKxGxTxD.reshape(B, K, G * T, D)
    return jnp.einsum("bkqd,bksd->bkqs", x, y_BxKxSxD, **F32).reshape(B, K, G, T, -1)


def _merged(x_BxKxGxTxN) -> jax.Array:
    B, K, _, _, N = x_BxKxGxTxN.shape
    return x_BxKxGxTxN.reshape(B, K, -1, N)
