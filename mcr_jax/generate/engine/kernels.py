"""Choice of the kernel of decoding attention, with XLA as the fallback."""

import functools
import logging

import jax
import jax.numpy as jnp

from mcr_jax.generate.engine import _gpu
from mcr_jax.generate.engine.decode_attention import attention, places, refusal
from mcr_jax.generate.engine.state import Shape, blueprint
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import one_device

_MIN_CAPABILITY = 8.0  # bfloat16 in tensor cores


def choose(c: DecoderConfig, shape: Shape) -> str:
    """Chooses the device's kernel if it can compute a layer, else XLA; a fallback is logged once.

    The kernel is compiled at the size of the run first. If the compiler refuses a GPU kernel, for
    example for lack of shared memory, smaller blocks are tried.
    """
    device = jax.default_backend()
    if c.attention == "xla" or device not in ("gpu", "tpu"):
        return "xla"
    dtypes = c.dtype, shape.kv_dtype or c.dtype
    refused = refusal(device, *dtypes, None, c.head_dim) or _missing(device)
    chosen = device
    if not refused and (refused := _compile_error(c, shape, device)) and device == "gpu":
        for block in _gpu.SMALLER_BLOCKS:
            if not _compile_error(c, shape, f"gpu-{block}"):
                _log_once(f"pallas on gpu, {block} keys at a time ({refused})")
                refused, chosen = None, f"gpu-{block}"
                break
    if refused:
        _log_once(f"xla (pallas on {device}: {refused})")
        return "xla"
    if any(c.local_layers) and refusal(device, *dtypes, c.window, c.head_dim):
        _log_once(f"pallas on {device}, and xla in layers with a sliding window")
    return chosen


def _missing(device: str) -> str | None:
    """Returns the requirement of the kernel that the device does not meet, or None."""
    if device == "tpu":
        return None
    gpu = jax.local_devices()[0]
    if "cuda" not in gpu.client.platform_version:
        return "it needs an NVIDIA GPU"
    if float(gpu.compute_capability) < _MIN_CAPABILITY:
        return f"it needs compute capability {_MIN_CAPABILITY}, not {gpu.compute_capability}"
    return None


@functools.cache
def _compile_error(c: DecoderConfig, shape: Shape, kernel: str) -> str | None:
    """Compiles a kernel at its real size; returns the compiler's error, or None."""
    layer = blueprint(c, shape, one_device(), kernel).layers[0]
    slots, prompts = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (shape.slots, shape.prompts))
    refused = refusal(kernel, c.dtype, shape.kv_dtype or c.dtype, c.window, c.head_dim)
    window = c.window if any(c.local_layers) and not refused else None

    def trial(q, layer, of_slot, of_prompt) -> jax.Array:
        at = places(of_slot, of_slot, of_slot == 0, of_prompt, of_slot, shape.share)
        return attention(q, layer, at, window=window, scale=1.0, kernel=kernel)

    q = jax.ShapeDtypeStruct((shape.slots, c.heads, c.head_dim), c.dtype)
    platform = "tpu" if kernel == "tpu" else "cuda"
    try:
        traced = jax.jit(trial).trace(q, layer, slots, prompts)
        traced.lower(lowering_platforms=(platform,)).compile()
    except Exception as e:  # noqa: BLE001 - the error classes of device compilers are private
        return str(e).partition("\n")[0][:200]
    return None


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("decoding attention: %s", choice)
