"""Splash attention on TPU, for `attention`: a block-sparse flash kernel written in Pallas.

The kernel is `jax.experimental.pallas.ops.tpu.splash_attention`. XLA cannot partition it, so under
a mesh (`jax.set_mesh`) it runs in a `shard_map`: rows over "data" and "fsdp", heads over "tensor".
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

LANES = 128  # of a TPU vector register; T and D are padded to a multiple
BLOCKS = (512, 256, 128)  # the largest that divides T is the kernel's tile
_TILED = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")


def refusal(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    """Returns why the kernel cannot take this call here; None if it can."""
    if jax.default_backend() != "tpu":
        return f"it needs a TPU, not {jax.default_backend()}"
    dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
    if not dtypes <= {"bfloat16", "float32"}:
        return f"it takes bfloat16 or float32, not {' and '.join(sorted(dtypes))}"
    if jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty:
        return f"with {jax.device_count()} devices it needs a mesh, set with jax.set_mesh"
    return None


def attention(q, k, v, segment_ids, window, scale, *, interpret: bool = False) -> jax.Array:
    """Computes `mcr_jax.model.attention.attention`; `interpret` runs the kernel on any CPU."""
    B, _, H, _ = q.shape
    kernel = functools.partial(_one_shard, window=window, scale=scale, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }
    if not free:
        return kernel(q, k, v, segment_ids)
    heads = _dividing(free, ("tensor",), H)
    shards = math.prod(free[name] for name in heads)
    # Every shard of query heads needs its own key heads: as many copies as make the cuts meet.
    copies = shards // math.gcd(k.shape[2], shards)
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    rows = _dividing(free, ("data", "fsdp"), B)
    spec = PartitionSpec(rows or None, None, heads or None, None)
    return jax.shard_map(
        kernel,
        in_specs=(spec, spec, spec, None if segment_ids is None else PartitionSpec(rows or None)),
        out_specs=spec,
        axis_names=set(free),
        check_vma=False,  # a Pallas kernel does not say how its results vary over the mesh
    )(q, k, v, segment_ids)


def _dividing(sizes: dict[str, int], names: tuple[str, ...], length: int) -> tuple[str, ...]:
    """Returns the axes that together divide `length`."""
    taken = ()
    for name in names:
        if name in sizes and length % sizes[name] == 0:
            taken += (name,)
            length //= sizes[name]
    return taken


def _one_shard(q, k, v, segment_ids, *, window, scale, interpret) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, T, H, D = q.shape
    K, dtype = k.shape[2], v.dtype
    # Padded keys lie after every real query, so the causal mask hides them. Zeros beyond D change
    # no score, and their outputs are cut off.
    after, beyond = -T % LANES, -D % LANES
    # The kernel does not scale. Scaled in float32, then rounded once.
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, after), (0, 0), (0, beyond))).swapaxes(1, 2) for x in (q, k, v)
    )
    length = T + after
    q = q.reshape(B, K, H // K, length, D + beyond)
    shape = (length, length)
    mask = (
        splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    )
    tile = next(size for size in BLOCKS if length % size == 0)
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * (H // K)),
        block_sizes=splash.BlockSizes(**dict.fromkeys(_TILED, tile)),
        interpret=interpret,
    )
    segments = None
    if segment_ids is not None:
        padded = jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, after)))
        segments = splash.SegmentIds(q=padded, kv=padded)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(over_heads, in_axes=(0, 0, 0, None if segments is None else 0))(
        q, k, v, segments
    )
    out = out.reshape(B, H, length, D + beyond).swapaxes(1, 2)
    return out[:, :T, :, :D].astype(dtype)
