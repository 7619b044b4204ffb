"""Decoding attention on a TPU by a Pallas kernel.

Each program reads one block of keys and values of one sequence, all heads of it. The step itself
lists the programs, one for each visible block: sequences differ much in length, and blocks behind
their end or before their window are not read.

Dimensions: see `decode_attention`; L is the number of lanes of a register.
"""

import functools

import jax
import jax.numpy as jnp

from mcr_jax.model.blockwise_attention import MASKED

LANES = 128
PLACES_MULTIPLE = LANES  # the length of the KV cache is a multiple of it
BLOCKS = (512, 256, 128)  # keys per program; the largest that fits
_KEY_BYTES = 1 << 20  # most bytes of keys in a program; as many of values, both double-buffered
_ROW_MULTIPLE = 16  # padding of queries, the tile of bfloat16


def refusal(dtype: str, kv_dtype: str, window: int | None, head_dim: int) -> str | None:
    """Returns the argument that the kernel does not support, or None; dtypes by name."""
    del window
    if dtype not in ("bfloat16", "float32"):
        return f"{dtype} arithmetic"
    if kv_dtype not in ("bfloat16", "float32", "int8"):
        return f"{kv_dtype} keys and values"
    return f"a head size of {head_dim}" if head_dim % LANES else None


def attention(
    q, keys, values, begins, ends, scale: float, *, interpret: bool
) -> tuple[jax.Array, ...]:
    """Returns output, maximum and sum of the softmax as `decode_attention._Part` has them.

    Args:
      q: queries [N, K, M, G, D].
      keys, values: `Kept`, [N, K, S, D], S a multiple of L.
      begins: int32 [N, M], first visible place, or None.
      ends: int32 [N], place after the last visible one; 0 without a visible place.
      scale: factor of the scores.
      interpret: True runs in Pallas' interpreter, on any device.
    """
    from jax.experimental import pallas as pl  # nobody else needs pallas
    from jax.experimental.pallas import tpu as pltpu

    N, K, M, G, D = q.shape
    S, rows = keys.values.shape[2], M * G
    size = keys.values.dtype.itemsize
    block = next(
        b for b in BLOCKS if S % b == 0 and (b == BLOCKS[-1] or K * b * D * size <= _KEY_BYTES)
    )
    sequence, place, programs = _programs(begins, ends, S // block, block)
    pad = ((0, 0), (0, 0), (0, -rows % _ROW_MULTIPLE), (0, 0))
    padded = jnp.pad(q.reshape(N, K, rows, D), pad)
    R = padded.shape[2]

    def of_sequence(*rest: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, *rest), lambda i, n, *_: (n[i], *(0,) * len(rest)))

    def of_block(*rest: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, K, block, *rest), lambda i, n, b, _: (n[i], 0, b[i], *(0,) * len(rest))
        )

    inputs, specs = [padded], [of_sequence(K, R, D)]
    if begins is not None:
        of_rows = jnp.pad(jnp.repeat(begins, G, axis=1), ((0, 0), (0, R - rows)))
        inputs.append(jnp.broadcast_to(of_rows[..., None], (N, R, LANES)))
        specs.append(of_sequence(R, LANES))
    for kept in (keys, values):
        inputs.append(kept.values)
        specs.append(of_block(D))
        if kept.scale is not None:
            inputs.append(kept.scale)
            specs.append(of_block())
    out, top, total = pl.pallas_call(
        functools.partial(
            _program,
            scale=scale,
            windowed=begins is not None,
            scaled=keys.scale is not None,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(programs,),
            in_specs=specs,
            out_specs=[of_sequence(K, R, D), of_sequence(K, R, LANES), of_sequence(K, R, LANES)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((N, K, R, width), jnp.float32) for width in (D, LANES, LANES)
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(sequence, place, ends, *inputs)
    shape = (N, K, M, G)
    return (
        out[:, :, :rows].reshape(*shape, D),
        *(x[:, :, :rows, 0].reshape(shape) for x in (top, total)),
    )


def _programs(begins, ends, most: int, block: int):
    """Returns sequence and block of each program, int32 [N * most], and the number of programs.

    Every sequence has at least one program, which initializes its output.
    """
    N = ends.shape[0]
    first = jnp.zeros(N, jnp.int32) if begins is None else jnp.maximum(begins.min(axis=1), 0)
    first = jnp.minimum(first // block, most - 1)
    counts = jnp.maximum(-(-ends // block) - first, 1)
    stops = jnp.cumsum(counts)
    sequence = jnp.repeat(jnp.arange(N), counts, total_repeat_length=N * most)
    place = first[sequence] + jnp.arange(N * most) - (stops - counts)[sequence]
    place = jnp.minimum(place, most - 1)  # for the entries beyond the number of programs
    return sequence.astype(jnp.int32), place.astype(jnp.int32), stops[-1]


def _program(sequence, place, ends, q, *refs, scale: float, windowed: bool, scaled: bool):
    """Adds one block of a sequence to its output; the blocks of a sequence are consecutive."""
    from jax.experimental import pallas as pl

    *refs, out, top, total = refs
    begins = refs.pop(0) if windowed else None
    keys, key_scale, values, value_scale = refs if scaled else (refs[0], None, refs[1], None)
    i = pl.program_id(0)
    n = sequence[i]

    @pl.when((i == 0) | (sequence[jnp.maximum(i - 1, 0)] != n))
    def _():
        out[...] = jnp.zeros_like(out)
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)

    _, heads, block, _ = keys.shape
    rows = q.shape[2]
    at = place[i] * block + jax.lax.broadcasted_iota(jnp.int32, (rows, block), 1)
    seen = at < ends[n]
    if begins is not None:
        seen &= at >= begins[0, :, :1]
    for head in range(heads):
        query = q[0, head]
        key, value = (x[0, head] for x in (keys, values))
        if scaled:  # int8 to float32 first, a conversion that every TPU has
            key, value = (x.astype(jnp.float32).astype(query.dtype) for x in (key, value))
        scores = _product(query, key.astype(query.dtype), 1) * scale
        if scaled:
            scores *= key_scale[0, head : head + 1]
        scores = jnp.where(seen, scores, MASKED)
        before = top[0, head, :, :1]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        p = jnp.exp(scores - highest)
        old = jnp.exp(before - highest)
        total[0, head] = total[0, head] * old + p.sum(axis=1, keepdims=True)
        top[0, head] = jnp.broadcast_to(highest, top.shape[2:])
        if scaled:
            p *= value_scale[0, head : head + 1]
        out[0, head] = out[0, head] * old + _product(
            p.astype(query.dtype), value.astype(query.dtype), 0
        )


def _product(a, b, of: int) -> jax.Array:
    """Multiplies over the second dimension of a and dimension `of` of b, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (of,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
