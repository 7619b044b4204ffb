"""Imports the HTTP library of huggingface_hub and google-genai: httpx2, or httpx before."""

import importlib
import importlib.util
from types import ModuleType


def installed() -> list[ModuleType]:
    """Returns the installed ones of httpx2 and httpx, in this order."""
    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return [importlib.import_module(name) for name in names]


def errors() -> tuple[type[Exception], ...]:
    """Returns the base class of the errors of each installed library."""
    return tuple(module.HTTPError for module in installed())
