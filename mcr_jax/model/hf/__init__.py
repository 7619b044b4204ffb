"""Hugging Face folders: decoders from safetensors and config.json, and back.

from mcr_jax.model import hf
model = hf.load("path/to/folder")
hf.save(model, "out")
"""

from mcr_jax.model.hf.folder import FILE_BYTES, INDEX, SINGLE, digest, load, read_params, save

__all__ = ["FILE_BYTES", "INDEX", "SINGLE", "digest", "load", "read_params", "save"]
