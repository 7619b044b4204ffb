"""Content hash of the parameters, independent of the mesh."""

import hashlib

import jax
import jax.numpy as jnp
from flax import nnx


def fingerprint(model: nnx.Module) -> str:
    """Returns 16 hex digits of SHA-256 over each parameter's path, shape, dtype and checksums.

    The two checksums are sums modulo 2^32 of hashes of each value's bits and place: in integer
    arithmetic the order of a sharded reduction does not matter. Only the sums leave the devices.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for path, leaf in leaves:
        sums = [int(x) for x in _checksums(leaf)]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        digest.update(f"{name} {leaf.shape} {leaf.dtype} {sums}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    once = _mixed(bits ^ _mixed(place))
    return jnp.sum(once, dtype=jnp.uint32), jnp.sum(_mixed(once ^ place), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Applies the last step of MurmurHash3, a bijection of 32 bits (Appleby, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
