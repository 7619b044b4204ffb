"""Models behind a network by kind: the one place that a new kind of service is added to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import UsageError
from mcr_jax.model_specs import GEMINI, OPENAI, Endpoint

if TYPE_CHECKING:
    from mcr_jax.generate.api import Remote

KINDS = (GEMINI, OPENAI)


def make(
    kind: str, model: str, named: Mapping[str, Endpoint] | None = None, **settings: Any
) -> "Remote":
    """Returns the service `kind` with `model`.

    Args:
      kind: one of `KINDS`, or the name of an endpoint.
      model: name at the service.
      named: endpoints by name.
      **settings: timeout, concurrency, thinking, thoughts, patience; see `gemini.Gemini`.

    Raises:
      UsageError: the kind is unknown, the key is missing, or a setting is wrong.
    """
    if kind == GEMINI:
        from mcr_jax.generate.gemini import Gemini

        return Gemini(model, **settings)
    if kind != OPENAI and kind not in (named or {}):
        listed = ", ".join((*KINDS, *(named or ())))
        raise UsageError(f"there is no service {kind!r}: there are {listed}")
    from mcr_jax.generate.openai import OpenAI

    settings.pop("thoughts", None)  # such servers send them or not, unasked
    return OpenAI(model, endpoint=(named or {}).get(kind, Endpoint()), **settings)


def identity(kind: str, model: str, thinking: str, thoughts: bool = False) -> str:
    """Returns the identity that `make` would give; needs no key."""
    from mcr_jax.generate import gemini, openai

    if kind == GEMINI:
        return gemini.identity(model, thinking, thoughts)
    return openai.identity(model, thinking, kind)


def samples(kind: str, model: str) -> bool:
    """Returns whether temperature and top-p are sent to `model`."""
    from mcr_jax.generate import gemini, openai

    return (gemini if kind == GEMINI else openai).samples(model)
