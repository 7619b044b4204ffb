"""Which kernel reads keys and values in a step of decoding; what a device lacks, XLA does."""

import functools
import logging

import jax

from mcr_jax.generate.engine.attention import refusal
from mcr_jax.generate.engine.state import Shape
from mcr_jax.model.config import DecoderConfig

_CAPABILITY = 8.0  # of bfloat16 in tensor cores


def choose(c: DecoderConfig, shape: Shape) -> str:
    """Pallas on an NVIDIA GPU where it can serve a layer, else XLA; says once where it cannot."""
    if c.attention == "xla" or jax.default_backend() != "gpu":
        return "xla"
    refused = refusal(c.dtype, shape.kv_dtype or c.dtype, None, c.head_dim)
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        refused = "it needs an NVIDIA GPU"
    elif float(device.compute_capability) < _CAPABILITY:
        refused = f"it needs compute capability {_CAPABILITY}, not {device.compute_capability}"
    if refused:
        _log_once(f"xla (pallas: {refused})")
        return "xla"
    if any(c.local_layers):
        _log_once("pallas, and xla in layers with a sliding window")
    return "pallas"


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("decoding attention: %s", choice)
