"""Which kernel reads keys and values in a step of decoding, chosen once and said in a line."""

import functools
import logging

import jax

from mcr_jax.generate.engine.attention import refusal
from mcr_jax.generate.engine.state import Shape
from mcr_jax.model.config import DecoderConfig


def choose(c: DecoderConfig, shape: Shape) -> str:
    """ "pallas" on an NVIDIA GPU where it can serve a layer, else "xla"; logs why, once."""
    if c.attention == "xla" or jax.default_backend() != "gpu":
        _log_once("xla")
        return "xla"
    refused = refusal(c.dtype, shape.kv_dtype or c.dtype, None, c.head_dim)
    if refused or "cuda" not in jax.local_devices()[0].client.platform_version:
        _log_once(f"xla (pallas: {refused or 'it needs an NVIDIA GPU'})")
        return "xla"
    local = ", xla in layers with a sliding window" if any(c.local_layers) else ""
    _log_once(f"pallas{local}")
    return "pallas"


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("decoding attention: %s", choice)
