"""Which kernel reads keys and values in a step of decoding; what a device lacks, XLA does."""

import functools
import logging

import jax
import jax.numpy as jnp

from mcr_jax.generate.engine.attention import Kept, Layer, attention, places, refusal
from mcr_jax.generate.engine.state import Shape
from mcr_jax.model.config import DecoderConfig

_CAPABILITY = 8.0  # of bfloat16 in tensor cores


def choose(c: DecoderConfig, shape: Shape) -> str:
    """The kernel of the device where it can serve a layer, else XLA; says once where it cannot."""
    device = jax.default_backend()
    if c.attention == "xla" or device not in ("gpu", "tpu"):
        return "xla"
    asked = device, c.dtype, shape.kv_dtype or c.dtype
    refused = refusal(*asked, None, c.head_dim) or _lacks(device)
    if not refused and device == "tpu":
        refused = _fault(*asked, c.heads, c.kv_heads, c.head_dim)
    if refused:
        _log_once(f"xla (pallas on {device}: {refused})")
        return "xla"
    if any(c.local_layers) and refusal(*asked, c.window, c.head_dim):
        _log_once(f"pallas on {device}, and xla in layers with a sliding window")
    return device


def _lacks(device: str) -> str | None:
    """What the kernel needs and the device has not."""
    if device == "tpu":
        return None
    gpu = jax.local_devices()[0]
    if "cuda" not in gpu.client.platform_version:
        return "it needs an NVIDIA GPU"
    if float(gpu.compute_capability) < _CAPABILITY:
        return f"it needs compute capability {_CAPABILITY}, not {gpu.compute_capability}"
    return None


@functools.cache
def _fault(device: str, dtype: str, kept: str, heads: int, kv_heads: int, size: int) -> str | None:
    """What the compiler says against the kernel at these heads; generations of TPUs differ."""
    scale = jnp.ones((1, kv_heads, 512)) if kept == "int8" else None
    own = Kept(jnp.zeros((1, kv_heads, 512, size), kept), scale)
    zero = jnp.zeros(1, jnp.int32)
    at = places(zero, zero, zero == 0, zero + 1, zero + 1, ranks=10)

    def trial(q) -> jax.Array:
        return attention(q, Layer(own, own, own, own), at, window=1, scale=1.0, kernel=device)

    try:
        jax.jit(trial).lower(jax.ShapeDtypeStruct((1, heads, size), dtype)).compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
        return str(e).partition("\n")[0][:200]
    return None


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("decoding attention: %s", choice)
