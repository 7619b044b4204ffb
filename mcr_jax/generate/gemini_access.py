"""Access to Gemini from the environment: API key, Vertex AI project, base URL."""

import os
import re
import warnings
from typing import Any

from mcr_jax.errors import UsageError

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")  # the first that is set is used
BASE_URL = "GOOGLE_GEMINI_BASE_URL"
USE_VERTEX = "GOOGLE_GENAI_USE_VERTEXAI"


def key_name() -> str:
    """Returns the environment variable of the key: the first that is set."""
    return next((name for name in KEYS if os.environ.get(name, "").strip()), KEYS[0])


def key() -> str:
    """Returns the key. Raises UsageError if there is none."""
    found = os.environ.get(key_name(), "").strip()
    if not found:
        raise UsageError(
            f"no key for Gemini: set {' or '.join(KEYS)} in the environment, or use a model other "
            "than gemini in config.sample.models, config.judge.name, config.judge.models, "
            "config.stitch.model or config.stitch.judge"
        )
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise UsageError(f"{key_name()} is not a key: it has white space or non-ASCII characters")
    return found


def vertex() -> dict[str, Any]:
    """Returns the client's options for Vertex AI; {} for the Gemini API.

    Vertex AI takes a project with application default credentials, or an API key alone.
    """
    if os.environ.get(USE_VERTEX, "").strip().lower() not in ("1", "true"):
        return {}
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "").strip()
    if not project:
        if not os.environ.get(key_name(), "").strip():
            raise UsageError(
                f"{USE_VERTEX} is set: set GOOGLE_CLOUD_PROJECT (and GOOGLE_CLOUD_LOCATION), or "
                "GOOGLE_API_KEY"
            )
        return {"vertexai": True}
    location = os.environ.get("GOOGLE_CLOUD_LOCATION", "").strip() or "global"
    return {"vertexai": True, "project": project, "location": location}


def ignore_warnings() -> None:
    """Suppresses the client's warnings of unknown enum values: they print what a server sent."""
    warnings.filterwarnings("ignore", module=r"google\.genai\._common")


def base_url() -> str | None:
    """Returns the base URL of a gateway, None for the service itself. Raises UsageError."""
    url = os.environ.get(BASE_URL, "").strip()
    if url and not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"{BASE_URL} is not a URL: it needs http:// or https:// and a host")
    return url or None
