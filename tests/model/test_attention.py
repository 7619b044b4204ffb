"""Attention is softmax over what the mask shows, however heads are grouped and keys are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcr_jax.model.attention import (
    MIN_BLOCK,
    attention,
    causal_mask,
    shared_prefix_attention,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(q, k, v, mask):
    """One head at a time in float64: q [B, T, H, D], k and v [B, T, K, D], mask [B, T, T]."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(*q.shape[:3]):
        keys, values = (x[b, mask[b, t], h // group].astype(np.float64) for x in (k, v))
        weights = np.exp(keys @ q[b, t, h] / np.sqrt(q.shape[3]))
        out[b, t, h] = weights @ values / weights.sum()
    return out


def test_the_mask_shows_earlier_tokens_of_the_same_segment_only():
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
    mask = np.asarray(causal_mask(jnp.asarray(segments)))
    for b, t, s in np.ndindex(*mask.shape):
        assert mask[b, t, s] == (s <= t and segments[b, s] == segments[b, t])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_head_by_head_softmax(kv_heads):
    q, k, v = normal(0, 2, 7, 4, 6), normal(1, 2, 7, kv_heads, 6), normal(2, 2, 7, kv_heads, 6)
    mask = np.tril(np.random.default_rng(3).random((2, 7, 7)) < 0.5)
    mask[..., 0] = True
    np.testing.assert_allclose(attention(q, k, v, mask), reference(q, k, v, mask), atol=2e-6)


def test_attention_in_several_blocks_of_queries_is_the_same():
    T = 2 * MIN_BLOCK + 3  # the last block is a short one
    q, k, v = normal(0, 1, T, 2, 4), normal(1, 1, T, 1, 4), normal(2, 1, T, 1, 4)
    segments = np.arange(T)[None] // 100
    mask = np.asarray(causal_mask(jnp.asarray(segments)))
    np.testing.assert_allclose(attention(q, k, v, mask), reference(q, k, v, mask), atol=2e-6)


def test_grouped_heads_equal_repeated_heads():
    q, k, v = normal(0, 1, 5, 4, 6), normal(1, 1, 5, 2, 6), normal(2, 1, 5, 2, 6)
    mask = causal_mask(jnp.ones((1, 5), int))
    many = attention(q, k.repeat(2, axis=2), v.repeat(2, axis=2), mask)
    np.testing.assert_allclose(attention(q, k, v, mask), many, atol=1e-6)


def test_large_scores_and_rows_that_see_nothing_stay_finite_forwards_and_backwards():
    q, k, v = 1e4 * normal(0, 1, 3, 2, 4), 1e4 * normal(1, 1, 3, 2, 4), normal(2, 1, 3, 2, 4)
    mask = np.tril(np.ones((1, 3, 3), bool), -1)  # the first query sees no key

    def total(q, k, v):
        return attention(q, k, v, mask).sum()

    assert np.isfinite(total(q, k, v))
    assert all(np.isfinite(g).all() for g in jax.grad(total, (0, 1, 2))(q, k, v))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_result_has_the_dtype_of_the_values(dtype):
    q, k, v = (jnp.asarray(normal(i, 1, 3, 2, 4), dtype) for i in range(3))
    assert attention(q, k, v, causal_mask(jnp.ones((1, 3), int))).dtype == dtype


@pytest.mark.parametrize("written", [0, 1, 3])
def test_reading_a_shared_prefix_equals_attention_over_all_keys_in_one_row(written):
    P, N, T, S, H, K, D = 2, 3, 5, 4, 4, 2, 6
    q = normal(0, P, N, H, D)
    prefix, suffix = (
        [normal(i, P, T, K, D) for i in (1, 2)],
        [normal(i, P, N, S, K, D) for i in (3, 4)],
    )
    own = [normal(i, P, N, K, D) for i in (5, 6)]
    lengths = np.array([5, 2])
    for stale in suffix:
        stale[:, :, written:] = 1e6  # places that no step has written yet
    real = np.arange(T) < lengths[:, None]
    for store in prefix:
        store[~real] = -1e6  # padding of the prompt
    got = shared_prefix_attention(q, prefix, real, suffix, own, written)
    for p, n in np.ndindex(P, N):
        keys, values = (
            np.concatenate([pre[p, : lengths[p]], suf[p, n, :written], new[p, n][None]])[None]
            for pre, suf, new in zip(prefix, suffix, own, strict=True)
        )
        alone = reference(q[p, n][None, None], keys, values, np.ones((1, 1, keys.shape[1]), bool))
        np.testing.assert_allclose(got[p, n], alone[0, 0], atol=5e-6)
