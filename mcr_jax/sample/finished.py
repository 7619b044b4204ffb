"""Check that all completions of a model are in the ledger, without loading its weights.

The manifest's section sample.MODEL records the facts that the model's identity depends on. While
they are unchanged, the recorded identity is valid and the ledger shows which completions are open.
If the weights were deleted, nothing new can be sampled, and completions in the ledger still count.
"""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mcr_jax import artifacts, console
from mcr_jax.config import sampling_dtype
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.model import checkpoints
from mcr_jax.model_specs import TRAINED, ModelSpec
from mcr_jax.paths import local_folder
from mcr_jax.workdir import digest

_FORM = {"identity?": str, "weights?": str, "rests?": dict}
_NO_EFFECT = ("attention", "remat", "folder")  # DecoderConfig fields that change no weight


def complete(e: Experiment, spec: ModelSpec) -> int | None:
    """Returns the number of a model's completions; None if some are open or it cannot be told.

    Raises:
      McrError: manifest or ledger cannot be read, or the cases cannot.
    """
    from mcr_jax.sample.draw import held

    noted = artifacts.section(e.workdir, f"sample.{spec.name}", _FORM)
    rests = noted.get("rests", {})
    if not e.workdir.ledger.exists() or not rests or "identity" not in noted:
        return None
    gone = _gone(e)
    known = {key: value for key, value in rests.items() if key not in ("checkpoints", *gone)}
    if known != _plain(e, spec, gone) or not _same_checkpoints(e, spec, rests):
        return None
    count = held(e, spec.name, noted["identity"])
    if count is not None and (gone or _no_checkpoint(e, spec)):
        console.say(
            f"sample: {spec.name}: its weights are no longer here; the completions in the ledger "
            f"are of {noted.get('weights', 'them')}"
        )
    return count


def rests(e: Experiment, spec: ModelSpec) -> dict[str, Any]:
    """Returns the facts that a model's identity depends on, for the manifest; {} if unknown."""
    if "://" in str(e.checkpoints) and spec.kind == TRAINED:
        return {}
    found = _plain(e, spec)
    if spec.kind == TRAINED:
        found["checkpoints"] = checkpoints.facts(e.checkpoints, _steps(e, spec))
    return found


def _plain(e: Experiment, spec: ModelSpec, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the facts without the checkpoints."""
    c = e.config
    found = {
        "seed": c.seed,
        "prompt_tokens": c.sample.prompt_tokens,
        "dtype": sampling_dtype(c),
        "kv_dtype": c.sample.kv_dtype,
        "jax": metadata.version("jax"),  # randomly initialized weights depend on its version
    }
    if spec.kind == TRAINED:
        found["which"] = spec.value or c.sample.checkpoint
    read = {
        "tokenizer": lambda: e.tokenizer.fingerprint,
        "decoder": lambda: _decoder(e),
        "model.folder": lambda: e.origin()["model.folder"],
    }
    return found | {key: tell() for key, tell in read.items() if key not in without}


def _decoder(e: Experiment) -> str:
    fields: Mapping[str, Any] = dataclasses.asdict(e.shape)
    return digest({key: str(value) for key, value in fields.items() if key not in _NO_EFFECT})


def _gone(e: Experiment) -> tuple[str, ...]:
    """Returns names of facts that are unknown because config.model.folder is missing."""
    folder = e.config.model.folder
    if not folder or local_folder(folder).exists():
        return ()
    return ("decoder", "model.folder", *(() if e.config.tokenizer.path else ("tokenizer",)))


def _steps(e: Experiment, spec: ModelSpec) -> list[int]:
    """Returns the checkpoints that the choice depends on: all for "best", else the newest."""
    steps = checkpoints.steps(e.checkpoints)
    if spec.value:
        return [step for step in steps if step == int(spec.value)]
    return steps if e.config.sample.checkpoint == "best" else [max(steps)] if steps else []


def _no_checkpoint(e: Experiment, spec: ModelSpec) -> bool:
    return spec.kind == TRAINED and not _steps(e, spec)


def _same_checkpoints(e: Experiment, spec: ModelSpec, rests: Mapping[str, Any]) -> bool:
    if spec.kind != TRAINED or _no_checkpoint(e, spec):
        return True
    known = rests.get("checkpoints")
    return isinstance(known, dict) and checkpoints.same(e.checkpoints, _steps(e, spec), known)
