"""Writes a model of a workdir as a Hugging Face folder, for transformers and vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcr_jax import config as configs
from mcr_jax import console, disk
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened
from mcr_jax.errors import UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.paths import local_folder
from mcr_jax.workdir import digest, write_text

MARK = "mcr_export.json"  # beside config.json: what was exported there


def main(argv: Sequence[str]) -> None:
    """`mcr export --workdir=DIR --out=DIR`."""
    flags = Flags("export", __doc__)
    flags.experiment()
    flags.string("out", "", "folder to write; must be new or empty")
    flags.string("model", "sft", "sft: config.sample.checkpoint says which; base: before training")
    flags.string("dtype", "", "float32 or bfloat16 to cast the weights to; default: as trained")
    flags.boolean("adapters", "the adapters alone, as PEFT keeps them, not merged into the weights")
    if not flags.parse(argv):
        return
    out, name, dtype = (flags.values[flag].value for flag in ("out", "model", "dtype"))
    if not out:
        raise UsageError("--out=DIR is missing")
    if name not in ("base", "sft"):
        raise UsageError(f"--model={name}: there are base and sft")
    if dtype not in ("", "float32", "bfloat16"):
        raise UsageError(f"--dtype={dtype}: there are float32 and bfloat16")
    out = local_folder(out)
    if not flags.values["adapters"].value:
        run(opened(flags), out, name, dtype)
        return
    if name == "base":
        raise UsageError("--adapters --model=base: the base model has no adapters")
    if dtype:
        raise UsageError("--adapters --dtype: adapters are written as trained")
    export_adapters(opened(flags), out)


def run(experiment: Experiment, out: Path, name: str, dtype: str = "") -> None:
    """Writes the model, spread over all devices while it is in memory."""
    from mcr_jax.model import hf, store
    from mcr_jax.model.hf.safetensors_files import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e, mesh = experiment, make_mesh(1, -1, 1)
    mark = _mark(e, name=name, dtype=dtype)
    if _there(out, mark):
        return
    refuse_taken(out)
    which, seed = e.config.sample.checkpoint, e.config.seed
    size = store.weights_bytes(e.shape, dtype or e.shape.dtype)
    disk.require(
        out, size, "the weights", "name another --out, or halve float32 by --dtype=bfloat16"
    )
    if name == "sft":
        model, step = store.trained(e.checkpoints, e.shape, mesh, which, seed)
        merged = ", adapters merged" if e.shape.lora else ""
        origin = f"the checkpoint of step {step}{merged}"
    else:
        model, origin = store.untrained(e.shape, seed, mesh), "what training starts from"
    hf.save(model, out, tokenizer=e.tokenizer, dtype=dtype or None)
    _end(out, mark, origin)


def export_adapters(experiment: Experiment, out: Path) -> None:
    """Writes the adapters of a run that trained some."""
    from mcr_jax.model import lora, store
    from mcr_jax.model.hf.safetensors_files import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e = experiment
    if e.shape.lora is None:
        raise UsageError("--adapters: this model has none; config.lora.rank trains some")
    mark = _mark(e, adapters=True)
    if _there(out, mark):
        return
    refuse_taken(out)
    which, mesh = e.config.sample.checkpoint, make_mesh(1, -1, 1)
    model, step = store.adapted(e.checkpoints, e.shape, mesh, which, e.config.seed)
    lora.save(model, out)
    _end(out, mark, f"the adapters of step {step}")


def _mark(e: Experiment, **asked: Any) -> dict[str, str]:
    """Digest of everything an export depends on: the call, and the run so far."""
    before, trained = e.refuse_other(e.origin()), {}
    if asked.get("name") != "base":
        trained = {"newest": newest_step(e.checkpoints), "which": e.config.sample.checkpoint}
        trained["dataset"], trained["prompt"] = before.get("dataset"), before.get("prompt")
    return {"of": digest([asked, configs.frozen(e.config), e.origin(), trained])}


def _there(out: Path, mark: dict[str, str]) -> bool:
    """Whether `out` holds all of it from before; says so."""
    try:
        held = json.loads((out / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no folder of ours: whether it is taken is found out next
        return False
    if not isinstance(held, dict) or held.get("of") != mark["of"]:
        return False
    console.say(f"export: nothing to do, {out} holds {held.get('holds')}")
    return True


def _end(out: Path, mark: dict[str, str], origin: str) -> None:
    told = {**mark, "holds": origin}
    write_text(out / MARK, json.dumps(told, indent=2) + "\n")  # last: it vouches for the rest
    console.say(f"export: {out} holds {origin}")
