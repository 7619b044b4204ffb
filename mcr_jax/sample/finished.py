"""Whether a model's completions are all there already, found without its weights.

The manifest's section sample.MODEL records what the identity of the model rests on. While all of
that is the same, the recorded identity is the model's, and the ledger says what is open under it.
Where weights are gone, nothing can be sampled from them, and what they wrote still counts.
"""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mcr_jax import artifacts, console
from mcr_jax.config import sampling_dtype
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.model import checkpoints
from mcr_jax.model.model_names import TRAINED
from mcr_jax.paths import local_folder
from mcr_jax.workdir import digest

_FORM = {"identity?": str, "weights?": str, "rests?": dict}
_HOW = ("attention", "remat", "folder")  # of a decoder's config, what changes no weight


def complete(e: Experiment, name: str) -> int | None:
    """The number of completions of a model where none is open and its weights need not be loaded.

    None where something is open, or what is recorded does not tell.

    Raises:
      McrError: manifest or ledger cannot be read, or the cases cannot.
    """
    from mcr_jax.sample.draw import held

    noted = artifacts.section(e.workdir, f"sample.{name}", _FORM)
    rests = noted.get("rests", {})
    if not e.workdir.ledger.exists() or not rests or "identity" not in noted:
        return None
    gone = _gone(e)
    known = {key: value for key, value in rests.items() if key not in ("checkpoints", *gone)}
    if known != _plain(e, name, gone) or not _same_checkpoints(e, name, rests):
        return None
    count = held(e.workdir, e.config, e.eval_cases(), e.prompt, name, noted["identity"])
    if count is not None and (gone or _no_checkpoint(e, name)):
        console.say(
            f"sample: {name}: its weights are no longer here; the completions in the ledger are of "
            f"{noted.get('weights', 'them')}"
        )
    return count


def rests(e: Experiment, name: str) -> dict[str, Any]:
    """Facts that the identity of a model depends on, for the manifest; {} if they are unknown."""
    if "://" in str(e.checkpoints) and name == TRAINED:
        return {}
    found = _plain(e, name)
    if name == TRAINED:
        found["checkpoints"] = checkpoints.facts(e.checkpoints, _steps(e))
    return found


def _plain(e: Experiment, name: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """All but the checkpoints."""
    c = e.config
    found = {
        "seed": c.seed,
        "prompt_tokens": c.sample.prompt_tokens,
        "dtype": sampling_dtype(c),
        "kv_dtype": c.sample.kv_dtype,
        "jax": metadata.version("jax"),  # draws the weights of a model that is from a seed
    }
    if name == TRAINED:
        found["which"] = c.sample.checkpoint
    read = {
        "tokenizer": lambda: e.tokenizer.fingerprint,
        "decoder": lambda: _decoder(e),
        "model.folder": lambda: e.origin()["model.folder"],
    }
    return found | {key: tell() for key, tell in read.items() if key not in without}


def _decoder(e: Experiment) -> str:
    fields: Mapping[str, Any] = dataclasses.asdict(e.shape)
    return digest({key: str(value) for key, value in fields.items() if key not in _HOW})


def _gone(e: Experiment) -> tuple[str, ...]:
    """Names of facts that are unknown because config.model.folder is missing."""
    folder = e.config.model.folder
    if not folder or local_folder(folder).exists():
        return ()
    return ("decoder", "model.folder", *(() if e.config.tokenizer.path else ("tokenizer",)))


def _steps(e: Experiment) -> list[int]:
    """The checkpoints that decide which one is sampled from: "best" is the best of all."""
    steps = checkpoints.steps(e.checkpoints)
    return steps if e.config.sample.checkpoint == "best" else [max(steps)] if steps else []


def _no_checkpoint(e: Experiment, name: str) -> bool:
    return name == TRAINED and not checkpoints.steps(e.checkpoints)


def _same_checkpoints(e: Experiment, name: str, rests: Mapping[str, Any]) -> bool:
    if name != TRAINED or _no_checkpoint(e, name):
        return True
    known = rests.get("checkpoints")
    return isinstance(known, dict) and checkpoints.same(e.checkpoints, _steps(e), known)
