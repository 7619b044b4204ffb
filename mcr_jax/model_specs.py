"""Models by name, wherever one is asked for: NAME=SPEC, or a SPEC that is its own name.

A SPEC is base (the workdir's model before training), sft (its chosen checkpoint), sft@STEP,
hf:FOLDER, gemini:MODEL, openai:MODEL, ENDPOINT:MODEL (of config.endpoints) or
file:COMPLETIONS.jsonl.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax.errors import UsageError

UNTRAINED, TRAINED = "base", "sft"
OWN = (UNTRAINED, TRAINED)  # models of the workdir itself
FOLDER, FILE = "hf", "file"
GEMINI, OPENAI = "gemini", "openai"
OFFLINE = "offline"  # fixed rules; a judge only
_TAKEN = (*OWN, FOLDER, FILE, GEMINI, OPENAI, OFFLINE, "diagnosis", "reasons")  # not endpoints
_FORM = re.compile(r"(?:(?P<name>[^=:/\\]+)=)?(?P<kind>[^:@]+)(?:(?P<sign>[:@])(?P<value>.+))?")
# Of OpenAI; the standard price is that of the first two. Other servers may have other names.
TIERS = ("auto", "default", "flex", "priority", "scale", "fast")
_ENDPOINT = re.compile(
    r"(?P<name>[\w.-]+)=(?P<url>https?://[^\s]+)(?:\s+(?P<key>\w+))?"
    rf"(?:\s+service_tier=(?P<tier>{'|'.join(TIERS)}))?"
)
_MAX_NAME_CHARS = 80


class ModelSpec(NamedTuple):
    """A model and its name in the ledger and in results.json.

    Attributes:
      name: as given, or the SPEC.
      kind: base, sft, hf, file, gemini, openai or the name of an endpoint.
      value: step, folder, file or model; "" without one.
    """

    name: str
    kind: str
    value: str

    @property
    def own(self) -> bool:
        """True for a model of the workdir itself."""
        return self.kind in OWN


class Endpoint(NamedTuple):
    """A server of chat completions.

    Attributes:
      name: part of a model's identity: a model may differ between servers.
      url: base URL, such as http://localhost:8000/v1; "" is OPENAI_BASE_URL or OpenAI's own.
      key_name: environment variable of the key. A server other than OpenAI's may need none.
      service_tier: one of TIERS, sent with each call; "" sends none.
    """

    name: str = OPENAI
    url: str = ""
    key_name: str = "OPENAI_API_KEY"
    service_tier: str = ""


def endpoints(config: ConfigDict) -> dict[str, Endpoint]:
    """Reads config.endpoints, each "NAME=URL", "NAME=URL KEY_VARIABLE" or with service_tier=TIER.

    Raises UsageError if one is of another form.
    """
    found = {}
    for text in config.endpoints:
        match = _ENDPOINT.fullmatch(text.strip())
        if not match or match["name"] in _TAKEN:
            raise UsageError(
                f"config.endpoints: {text!r} is not NAME=URL, NAME=URL KEY_VARIABLE or either with "
                f"service_tier=TIER ({', '.join(TIERS)}), with a name of its own"
            )
        name, *others = match.group("name", "url", "key", "tier")
        if name in found:
            raise UsageError(f"config.endpoints names {name!r} twice")
        if "@" in match["url"] or "?" in match["url"]:  # config.json would keep a password
            raise UsageError(
                f"config.endpoints: the URL of {name} holds a user name or a query; name the "
                "environment variable of the key instead: NAME=URL KEY_VARIABLE"
            )
        found[name] = Endpoint(name, *(other or "" for other in others))
    return found


def price_tier(service_tier: str) -> str:
    """Returns the tier whose price counts for a service_tier; "" is the standard price."""
    return "" if service_tier in TIERS[:2] else service_tier


def parse(text: str, named: Collection[str] = ()) -> ModelSpec:
    """Reads NAME=SPEC or SPEC; `named` are endpoints. Raises UsageError for another form."""
    kinds = (FOLDER, GEMINI, OPENAI, FILE, *named)
    match = _FORM.fullmatch(text.strip())
    if match:
        name, kind, sign, value = match.group("name", "kind", "sign", "value")
        name = (name or text).strip()
        step = kind == TRAINED and sign == "@" and value.isdecimal()
        known = (kind in OWN and sign is None) or step or (kind in kinds and sign == ":")
        if known and _is_name(name):
            return ModelSpec(name, kind, (value or "").strip())
    raise UsageError(
        f"there is no model {text!r}: name base, sft, sft@STEP, "
        f"{', '.join(f'{kind}:…' for kind in kinds)}, or NAME= one of these"
    )


def checked_name(name: str, text: str) -> str:
    """Returns `name`, the name in `text`. Raises UsageError if it cannot name a model."""
    if name and _is_name(name):
        return name
    raise UsageError(f"{text!r} needs a name of 1 to {_MAX_NAME_CHARS} printable characters")


def _is_name(name: str) -> bool:
    return len(name) <= _MAX_NAME_CHARS and name.isprintable()


def specs(config: ConfigDict) -> list[ModelSpec]:
    """Reads config.sample.models. Raises UsageError if one is wrong or two have one name."""
    named = endpoints(config)
    refuse_empty("config.sample.models", config.sample.models)
    found = [parse(text, named) for text in config.sample.models]
    names = [spec.name for spec in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"config.sample.models names {twice[0]!r} twice")
    return found


def refuse_empty(field: str, entries: Collection[str]) -> None:
    """Raises UsageError if an entry of a list in the config is empty."""
    if not all(entry.strip() for entry in entries):
        raise UsageError(f"{field}={','.join(entries)} has an empty entry: leave out its comma")


def names(config: ConfigDict) -> list[str]:
    """Returns the names of config.sample.models, in order. Raises UsageError as `specs`."""
    return [spec.name for spec in specs(config)]
