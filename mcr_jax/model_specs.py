"""Models by name, wherever one is asked for: NAME=SPEC, or a SPEC that is its own name.

A SPEC is base (the workdir's model before training), sft (its chosen checkpoint), sft@STEP,
hf:FOLDER, gemini:MODEL, openai:MODEL or file:COMPLETIONS.jsonl.
"""

import re
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax.errors import UsageError

UNTRAINED, TRAINED = "base", "sft"
OWN = (UNTRAINED, TRAINED)  # models of the workdir itself
FOLDER, FILE = "hf", "file"
GEMINI, OPENAI = "gemini", "openai"
OFFLINE = "offline"  # fixed rules; a judge only
_FORM = re.compile(r"(?:(?P<name>[^=:/\\]+)=)?(?P<kind>[^:@]+)(?:(?P<sign>[:@])(?P<value>.+))?")
_MAX_NAME_CHARS = 80


class ModelSpec(NamedTuple):
    """A model and its name in the ledger and in results.json.

    Attributes:
      name: as given, or the SPEC.
      kind: base, sft, hf, file, gemini or openai.
      value: step, folder, file or model; "" without one.
    """

    name: str
    kind: str
    value: str

    @property
    def own(self) -> bool:
        """True for a model of the workdir itself."""
        return self.kind in OWN


def parse(text: str) -> ModelSpec:
    """Reads NAME=SPEC or SPEC. Raises UsageError if it is of another form."""
    kinds = (FOLDER, GEMINI, OPENAI, FILE)
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
    found = [parse(text) for text in config.sample.models]
    names = [spec.name for spec in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"config.sample.models names {twice[0]!r} twice")
    return found


def names(config: ConfigDict) -> list[str]:
    """Returns the names of config.sample.models, in order. Raises UsageError as `specs`."""
    return [spec.name for spec in specs(config)]
