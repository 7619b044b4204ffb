"""Decoding attention on NVIDIA GPUs by jax's Pallas kernel. Dimensions: see `decode_attention`."""

import jax
import jax.numpy as jnp

BLOCK = 128
PLACES_MULTIPLE = BLOCK  # the length of the KV cache is a multiple of it
SMALLER_BLOCKS = (32, 16)  # keys per program if shared memory does not hold the default block


def refusal(dtype: str, kv_dtype: str, window: int | None, head_dim: int) -> str | None:
    """Returns the argument that the kernel does not support, or None; dtypes by name."""
    if dtype != "bfloat16":
        return f"{dtype} arithmetic"
    if kv_dtype != dtype:
        return f"{kv_dtype} keys and values"
    if window is not None:
        return "a sliding window"
    if head_dim < 16 or head_dim & (head_dim - 1):
        return f"a head size of {head_dim}"
    return None


def attention(
    q, keys, values, begins: None, ends, scale: float, *, interpret: bool, block: int = 0
) -> tuple[jax.Array, ...]:
    """Computes `_tpu.attention` without windows: queries of row n see its first ends[n] keys.

    A program reads `block` keys at a time; 0 takes a block that fits most GPUs.
    """
    from jax.experimental.pallas.ops.gpu import decode_attention  # nobody else needs pallas

    N, K, M, G, D = q.shape
    S = keys.values.shape[2]
    rows = M * G
    block_h = next(size for size in (16, 32, 64) if size >= min(rows, 64))
    block_k = block or (BLOCK if D <= 64 else BLOCK // 2)
    splits = 1  # programs per sequence, as many as it takes to fill a GPU
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
