"""The HTTP library below huggingface_hub and google-genai: httpx2, or httpx in older versions."""

import importlib
import importlib.util
from types import ModuleType


def installed() -> list[ModuleType]:
    """Imports those of the two that are installed, httpx2 first."""
    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return [importlib.import_module(name) for name in names]


def errors() -> tuple[type[Exception], ...]:
    """Returns the base class of the errors of each."""
    return tuple(module.HTTPError for module in installed())
