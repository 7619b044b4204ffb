"""Chooses the kernel of a decoding step; falls back to XLA where no kernel is available."""

import functools
import logging

import jax
import jax.numpy as jnp

from mcr_jax.generate.engine import _gpu
from mcr_jax.generate.engine.decode_attention import attention, places, refusal
from mcr_jax.generate.engine.state import Shape, blueprint
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import one_device

_CAPABILITY = 8.0  # of bfloat16 in tensor cores


def choose(c: DecoderConfig, shape: Shape) -> str:
    """The kernel of the device where it can serve a layer, else XLA; says once where it cannot.

    Before it is chosen it is compiled at the run's real size. A GPU's kernel that the compiler
    refuses, such as for want of shared memory, is tried again with smaller blocks.
    """
    device = jax.default_backend()
    if c.attention == "xla" or device not in ("gpu", "tpu"):
        return "xla"
    asked = device, c.dtype, shape.kv_dtype or c.dtype
    refused = refusal(*asked, None, c.head_dim) or _lacks(device)
    chosen = device
    if not refused and (refused := _fault(c, shape, device)) and device == "gpu":
        for block in _gpu.SMALLER:
            if not _fault(c, shape, f"gpu-{block}"):
                _log_once(f"pallas on gpu, {block} keys at a time ({refused})")
                refused, chosen = None, f"gpu-{block}"
                break
    if refused:
        _log_once(f"xla (pallas on {device}: {refused})")
        return "xla"
    if any(c.local_layers) and refusal(*asked, c.window, c.head_dim):
        _log_once(f"pallas on {device}, and xla in layers with a sliding window")
    return chosen


def _lacks(device: str) -> str | None:
    """Returns the requirement of the kernel that the device does not meet."""
    if device == "tpu":
        return None
    gpu = jax.local_devices()[0]
    if "cuda" not in gpu.client.platform_version:
        return "it needs an NVIDIA GPU"
    if float(gpu.compute_capability) < _CAPABILITY:
        return f"it needs compute capability {_CAPABILITY}, not {gpu.compute_capability}"
    return None


@functools.cache
def _fault(c: DecoderConfig, shape: Shape, kernel: str) -> str | None:
    """Returns the error of the compiler for a kernel of this size; it differs by device."""
    layer = blueprint(c, shape, one_device(), kernel).layers[0]
    slots, prompts = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (shape.slots, shape.prompts))
    windowed = any(c.local_layers) and not refusal(
        kernel, c.dtype, shape.kv_dtype or c.dtype, c.window, c.head_dim
    )

    def trial(q, layer, of_slot, of_prompt) -> jax.Array:
        at = places(of_slot, of_slot, of_slot == 0, of_prompt, of_slot, shape.share)
        window = c.window if windowed else None
        return attention(q, layer, at, window=window, scale=1.0, kernel=kernel)

    q = jax.ShapeDtypeStruct((shape.slots, c.heads, c.head_dim), c.dtype)
    platform = "tpu" if kernel == "tpu" else "cuda"
    try:
        traced = jax.jit(trial).trace(q, layer, slots, prompts)
        traced.lower(lowering_platforms=(platform,)).compile()
    except Exception as e:  # noqa: BLE001 - the class of what a device's compiler raises is private
        return str(e).partition("\n")[0][:200]
    return None


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("decoding attention: %s", choice)
