"""Hugging Face folders: `hf.load` reads a decoder, `hf.save` writes one."""

import importlib
from typing import Any

__all__ = ["FILE_BYTES", "INDEX", "SINGLE", "digest", "load", "read_params", "save"]


def __getattr__(name: str) -> Any:
    """Loads the names above on first use: config.json is read here without importing jax."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mcr_jax.model.hf.folder"), name)
