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

MARK = "mcr_export.json"  # beside config.json; describes the export


def main(argv: Sequence[str]) -> None:
    """Runs `mcr export --workdir=DIR --out=DIR`."""
    flags = Flags("export", __doc__)
    flags.experiment()
    flags.string("out", "", "folder to write; must be new or empty")
    flags.string(
        "model", "sft", "sft: checkpoint by config.sample.checkpoint; base: before training"
    )
    flags.string("dtype", "", "float32 or bfloat16 to cast the weights to; default: as trained")
    flags.boolean("adapters", "writes the adapters in PEFT's format, not merged into the weights")
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
    """Writes the model to `out`; it is sharded over all devices while in memory."""
    from mcr_jax.model import hf, store
    from mcr_jax.model.hf.safetensors_files import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e, mesh = experiment, make_mesh(1, -1, 1)
    mark = _mark(e, name=name, dtype=dtype)
    if _is_exported(out, mark):
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
    """Writes the trained adapters to `out`, in the format of PEFT."""
    from mcr_jax.model import lora, store
    from mcr_jax.model.hf.safetensors_files import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e = experiment
    if e.shape.lora is None:
        raise UsageError("--adapters: this run trained none; train with config.lora.rank")
    mark = _mark(e, adapters=True)
    if _is_exported(out, mark):
        return
    refuse_taken(out)
    which, mesh = e.config.sample.checkpoint, make_mesh(1, -1, 1)
    model, step = store.adapted(e.checkpoints, e.shape, mesh, which, e.config.seed)
    lora.save(model, out)
    _end(out, mark, f"the adapters of step {step}")


def _mark(e: Experiment, **call: Any) -> dict[str, str]:
    """Returns a digest of everything that decides an export: the call and the run so far."""
    before, trained = e.refuse_other(e.origin()), {}
    if call.get("name") != "base":
        trained = {"newest": newest_step(e.checkpoints), "which": e.config.sample.checkpoint}
        trained["dataset"], trained["prompt"] = before.get("dataset"), before.get("prompt")
    return {"of": digest([call, configs.frozen(e.config), e.origin(), trained])}


def _is_exported(out: Path, mark: dict[str, str]) -> bool:
    """Returns True, with a message, if `out` holds this export already."""
    try:
        held = json.loads((out / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not an export; `refuse_taken` comes next
        return False
    if not isinstance(held, dict) or held.get("of") != mark["of"]:
        return False
    console.say(f"export: nothing to do, {out} holds {held.get('holds')}")
    return True


def _end(out: Path, mark: dict[str, str], origin: str) -> None:
    content = {**mark, "holds": origin}
    write_text(out / MARK, json.dumps(content, indent=2) + "\n")  # last: marks the export as whole
    console.say(f"export: {out} holds {origin}")
