"""Decoding attention on an NVIDIA GPU, for `attention`: jax's own kernel, written in Pallas.

Dimensions as there.
"""

import jax
import jax.numpy as jnp

BLOCK = 128
EVEN = BLOCK  # places are kept in multiples of it
SMALLER = (32, 16)  # keys that a program reads where shared memory does not hold the usual block


def refusal(dtype: str, kept: str, window: int | None, head_dim: int) -> str | None:
    """Why the kernel cannot do this, or None if it can; dtypes by name."""
    if dtype != "bfloat16":
        return f"{dtype} arithmetic"
    if kept != dtype:
        return f"{kept} keys and values"
    if window is not None:
        return "a sliding window"
    if head_dim < 16 or head_dim & (head_dim - 1):
        return f"a head size of {head_dim}"
    return None


def usual_block(head_dim: int) -> int:
    """Keys that a program reads where nothing speaks against it: what fits into most GPUs."""
    return BLOCK if head_dim <= 64 else BLOCK // 2


def attention(
    q, keys, values, begins: None, ends, scale: float, *, interpret: bool, block: int = 0
) -> tuple[jax.Array, ...]:
    """Computes `_tpu.attention` without windows: queries of row n see its first ends[n] keys.

    A program reads `block` keys at a time, 0 for the usual number.
    """
    from jax.experimental.pallas.ops.gpu import decode_attention  # nobody else needs pallas

    N, K, M, G, D = q.shape
    S = keys.values.shape[2]
    rows = M * G
    block_h = next(size for size in (16, 32, 64) if size >= min(rows, 64))
    block_k = block or usual_block(D)
    splits = 1  # of a sequence, each a program of its own, until there are enough to fill a GPU
    while N * K * splits < 512 and S % (2 * splits * block_k) == 0:
        splits *= 2
    out, (total, top) = decode_attention.mqa(
        q.reshape(N * K, rows, D),
        keys.values.reshape(N * K, S, D),
        values.values.reshape(N * K, S, D),
        kv_seq_len=jnp.repeat(ends, K),
        sm_scale=scale,
        block_h=block_h,
        block_k=block_k,
        k_splits=splits,
        interpret=interpret,
        return_residuals=True,
        normalize_output=False,
    )
    shape = (N, K, M, G)
    return out.astype(jnp.float32).reshape(*shape, D), top.reshape(shape), total.reshape(shape)
