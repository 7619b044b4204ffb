"""The HTTP library below huggingface_hub and google-genai: httpx2, or httpx in older versions."""

import importlib
import importlib.util
from types import ModuleType


def installed() -> list[ModuleType]:
    """Those of the two that are installed, httpx2 first; imports them."""
    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return [importlib.import_module(name) for name in names]


def errors() -> tuple[type[Exception], ...]:
    """What they raise where a call fails, each the base of all of its own."""
    return tuple(module.HTTPError for module in installed())
