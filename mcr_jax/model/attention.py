"""Attention, in plain XLA: grouped heads, an explicit mask, softmax in float32.

Dimensions: B batch, T queries, S keys, H query heads, K key heads, G = H / K, D head size.
"""

import jax
import jax.numpy as jnp

BLOCKS, MIN_BLOCK = 8, 128
MASKED = -1e30  # finite: a fully masked row gives a uniform softmax, never NaN


def causal_mask(segment_ids: jax.Array) -> jax.Array:
    """[B, T] segment ids -> bool [B, T, T]: key not later than query, in the same segment."""
    length = segment_ids.shape[-1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tril(jnp.ones((length, length), bool))


def attention(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, mask_BxTxT) -> jax.Array:
    """Causal softmax attention scaled by 1/sqrt(D); True in the mask means attend.

    Queries go in at most `BLOCKS` blocks, each with the keys up to its end and no later ones.

    Args:
      mask_BxTxT: nowhere True for a key later than its query.

    Returns:
      [B, T, H, D] in the dtype of the values.
    """
    B, T, H, D = q_BxTxHxD.shape
    K = k_BxTxKxD.shape[2]
    q = q_BxTxHxD.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)
    k, v = k_BxTxKxD.transpose(0, 2, 1, 3), v_BxTxKxD.transpose(0, 2, 1, 3)
    size = max(MIN_BLOCK, -(-T // BLOCKS))
    outs = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        mask = mask_BxTxT[:, None, None, start:stop, :stop]
        outs.append(_attend(q[:, :, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask))
    return jnp.concatenate(outs, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)


def _attend(q_BxKxGxTxD, k_BxKxSxD, v_BxKxSxD, mask) -> jax.Array:
    B, K, G, T, D = q_BxKxGxTxD.shape
    q = q_BxKxGxTxD.reshape(B, K, G * T, D)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k_BxKxSxD, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores.reshape(B, K, G, T, -1) * D**-0.5, MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top).reshape(B, K, G * T, -1)
    # The division by the sum comes after the product: on D numbers per query instead of S.
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v_BxKxSxD.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, v_BxKxSxD, preferred_element_type=jnp.float32)
    return (out / total).astype(v_BxKxSxD.dtype).reshape(B, K, G, T, D)


def shared_prefix_attention(q_PxNxHxD, prefix_kv, prefix_mask_PxT, suffix_kv, own_kv, written):
    """One decoding step of N samples per prompt that share the prompt's keys and values.

    The prefix is read once for all samples of a prompt; the softmax runs over prefix, suffix and
    the token's own key together, in float32.

    Args:
      q_PxNxHxD: queries of the new tokens, P prompts times N samples.
      prefix_kv: keys and values of the prompts, each [P, T, K, D].
      prefix_mask_PxT: which of the T prompt places are real.
      suffix_kv: keys and values written by earlier steps, each [P, N, S, K, D].
      own_kv: key and value of the new tokens, each [P, N, K, D].
      written: number of suffix places written so far, the same for every sample.

    Returns:
      [P, N, H, D].
    """
    P, N, H, D = q_PxNxHxD.shape
    (prefix_k, prefix_v), (suffix_k, suffix_v), (own_k, own_v) = prefix_kv, suffix_kv, own_kv
    T, S, K = prefix_k.shape[1], suffix_k.shape[2], prefix_k.shape[2]
    q = q_PxNxHxD.reshape(P, N, K, H // K, D) * D**-0.5
    f32 = {"preferred_element_type": jnp.float32}
    to_prefix = jnp.einsum("pnkgd,ptkd->pnkgt", q, prefix_k, **f32)
    to_suffix = jnp.einsum("pnkgd,pnskd->pnkgs", q, suffix_k, **f32)
    to_own = jnp.einsum("pnkgd,pnkd->pnkg", q, own_k, **f32)[..., None]
    to_prefix = jnp.where(prefix_mask_PxT[:, None, None, None], to_prefix, MASKED)
    to_suffix = jnp.where(jnp.arange(S) < written, to_suffix, MASKED)
    scores = jnp.concatenate([to_prefix, to_suffix, to_own], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(prefix_v.dtype)
    out = (
        jnp.einsum("pnkgt,ptkd->pnkgd", weights[..., :T], prefix_v)
        + jnp.einsum("pnkgs,pnskd->pnkgd", weights[..., T : T + S], suffix_v)
        + weights[..., -1:] * own_v[:, :, :, None, :]
    )
    return out.reshape(P, N, H, D)
