"""Attention in plain XLA: the reference, and the fallback without a faster kernel.

Each block of queries goes over the blocks of keys that it may see, with a running softmax (after
Dao et al., 2022): none after it, none before its window, none before its first segment. So packed
rows cost what their segments cost. The backward pass computes the weights again: memory per layer
grows with T, not with T squared.

Dimensions: B batch, T tokens, H query heads, K key heads, G = H / K, D head size; N blocks, of S
tokens each.
"""

import functools

import jax
import jax.numpy as jnp

BLOCK = 128
MASKED = -1e30  # finite: a fully masked row gives a uniform softmax, never NaN
F32 = {"preferred_element_type": jnp.float32}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids) -> jax.Array:
    """Computes `mcr_jax.model.attention.attention`."""
    return _forward(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids)[0]


def _forward(window, scale, q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids):
    T, K = k_BxTxKxD.shape[1:3]
    q, k, v = (_blocked(x, K) for x in (q_BxTxHxD, k_BxTxKxD, v_BxTxKxD))
    segments, firsts = _segment_blocks(segment_ids, T), first_blocks(T, window, segment_ids)

    def of_queries(_, block):
        number, first, queries = block

        def of_keys(at, sums):
            out, top, total = sums
            scores = _scores(queries, k[at], scale)
            scores = _masked(scores, number, at, window, segments)
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights, faded = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            values = jnp.einsum("bkqs,bksd->bkqd", weights.astype(v.dtype), v[at], **F32)
            return out * faded + values, new_top, total * faded + weights.sum(-1, keepdims=True)

        one = (*queries.shape[:-1], 1)
        nothing = jnp.zeros(queries.shape), jnp.full(one, MASKED), jnp.zeros(one)
        out, top, total = jax.lax.fori_loop(first, number + 1, of_keys, nothing)
        return None, ((out / total).astype(v.dtype), top + jnp.log(total))

    _, (out, norm) = jax.lax.scan(of_queries, None, (jnp.arange(len(q)), firsts, q))
    out = _unblocked(out, q_BxTxHxD.shape)
    return out, (q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids, out, norm)


def _backward(window, scale, kept, d_out_BxTxHxD):
    q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, segment_ids, out_BxTxHxD, norm = kept
    T, K = k_BxTxKxD.shape[1:3]
    q, k, v = (_blocked(x, K) for x in (q_BxTxHxD, k_BxTxKxD, v_BxTxKxD))
    out, d_out = (_blocked(x, K) for x in (out_BxTxHxD, d_out_BxTxHxD))
    overlap = jnp.einsum("nbkqd,nbkqd->nbkq", out, d_out, **F32)[..., None]
    segments, firsts = _segment_blocks(segment_ids, T), first_blocks(T, window, segment_ids)

    def of_queries(sums, block):
        number, first, queries, d_outs, norms, overlaps = block

        def of_keys(at, sums):
            d_queries, d_k, d_v = sums
            scores = _scores(queries, k[at], scale)
            weights = jnp.exp(_masked(scores, number, at, window, segments) - norms)
            d_scores = weights * (_scores(d_outs, v[at], scale) - overlaps * scale)
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
            d_queries += jnp.einsum("bkqs,bksd->bkqd", d_scores, k[at], **F32)
            d_keys = jnp.einsum("bkqs,bkqd->bksd", d_scores, queries, **F32)
            d_values = jnp.einsum("bkqs,bkqd->bksd", weights, d_outs, **F32)
            return d_queries, d_k.at[at].add(d_keys), d_v.at[at].add(d_values)

        nothing = jnp.zeros(queries.shape)
        d_queries, *sums = jax.lax.fori_loop(first, number + 1, of_keys, (nothing, *sums))
        return tuple(sums), d_queries

    nothing = jnp.zeros(k.shape), jnp.zeros(v.shape)
    blocks = jnp.arange(len(q)), firsts, q, d_out.astype(v.dtype), norm, overlap
    (d_k, d_v), d_q = jax.lax.scan(of_queries, nothing, blocks)
    inputs = q_BxTxHxD, k_BxTxKxD, v_BxTxKxD
    grads = (
        _unblocked(d, x.shape).astype(x.dtype) for d, x in zip((d_q, d_k, d_v), inputs, strict=True)
    )
    return (*grads, None)


attention.defvjp(_forward, _backward)


def visible(query, key, window: int | None, of_query=None, of_key=None) -> jax.Array:
    """Returns bool [B or 1, queries, keys]: the query may see the key.

    Args:
      query, key: int, the places of each in the row.
      of_query, of_key: int [B, queries], [B, keys], their segments; None is one segment.
    """
    seen = key <= query[:, None]
    if window is not None:
        seen &= key > query[:, None] - window
    if of_query is None:
        return seen[None]
    return seen & (of_query[:, :, None] == of_key[:, None, :])


def first_blocks(T: int, window: int | None, segment_ids) -> jax.Array:
    """Returns int [N], the first block of keys that each block of queries sees in any row."""
    S, places = _size(T), jnp.arange(0, T, _size(T))
    seen = jnp.zeros_like(places) if window is None else jnp.maximum(places - window + 1, 0)
    if segment_ids is not None:
        begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        starts = jax.lax.cummax(jnp.where(begins, jnp.arange(T), 0), axis=1)
        seen = jnp.maximum(seen, starts.min(axis=0)[::S])
    return seen // S


def _size(T: int) -> int:
    return min(BLOCK, T)


def _scores(q, k, scale) -> jax.Array:
    """Scaled inner products, float32 [B, K, G * S, S]."""
    return jnp.einsum("bkqd,bksd->bkqs", q, k, **F32) * scale


def _masked(scores, number, at, window, segments) -> jax.Array:
    B, K, _, S = scores.shape
    query, key = number * S + jnp.arange(S), at * S + jnp.arange(S)
    ids = () if segments is None else (segments[number], segments[at])
    seen = visible(query, key, window, *ids)[:, None, None]
    return jnp.where(seen, scores.reshape(B, K, -1, S, S), MASKED).reshape(scores.shape)


def _blocked(x_BxTxHxD, K: int) -> jax.Array:
    """Splits into [N, B, K, G * S, D], with zeros after the last token."""
    B, T, H, D = x_BxTxHxD.shape
    S = _size(T)
    x = jnp.pad(x_BxTxHxD, ((0, 0), (0, -T % S), (0, 0), (0, 0)))
    x = x.reshape(B, -1, S, K, H // K, D).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(len(x), B, K, -1, D)


def _unblocked(x_NxBxKxQxD, shape) -> jax.Array:
    B, T, H, D = shape
    N, _, K = x_NxBxKxQxD.shape[:3]
    x = x_NxBxKxQxD.reshape(N, B, K, H // K, -1, D).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(B, -1, H, D)[:, :T]


def _segment_blocks(segment_ids, T: int) -> jax.Array | None:
    """Splits into [N, B, S]; no real query sees the padding after the last token."""
    if segment_ids is None:
        return None
    S = _size(T)
    padded = jnp.pad(segment_ids, ((0, 0), (0, -T % S)))
    return padded.reshape(len(padded), -1, S).swapaxes(0, 1)
