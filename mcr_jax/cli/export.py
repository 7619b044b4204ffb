"""Writes a model of a workdir as a Hugging Face folder, for transformers and vLLM."""

from collections.abc import Sequence
from pathlib import Path

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import UsageError


def main(argv: Sequence[str]) -> None:
    """`mcr export --workdir=DIR --out=DIR`."""
    flags = Flags("export", __doc__)
    flags.experiment()
    flags.string("out", "", "folder to write; must be new or empty")
    flags.string("model", "sft", "sft: config.sample.checkpoint says which; base: before training")
    flags.boolean("adapters", "the adapters alone, as PEFT keeps them, not merged into the weights")
    if not flags.parse(argv):
        return
    out, name = flags.values["out"].value, flags.values["model"].value
    if not out:
        raise UsageError("--out=DIR is missing")
    if name not in ("base", "sft"):
        raise UsageError(f"--model={name}: there are base and sft")
    experiment = Experiment.open(flags)
    if flags.values["adapters"].value:
        export_adapters(experiment, Path(out), name)
    else:
        run(experiment, Path(out), name)


def run(experiment: Experiment, out: Path, name: str) -> None:
    """Writes the model, spread over all devices while it is in memory."""
    from mcr_jax.model import hf, store
    from mcr_jax.model.folder import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e, mesh = experiment, make_mesh(1, -1, 1)
    refuse_taken(out)
    e.refuse_other(e.origin())
    which, seed = e.config.sample.checkpoint, e.config.seed
    if name == "sft":
        model, step = store.trained(e.checkpoints, e.shape, mesh, which, seed)
        origin = f"the checkpoint of step {step}"
    else:
        model, origin = store.untrained(e.shape, seed, mesh), "what training starts from"
    hf.save(model, out, tokenizer=e.tokenizer)
    console.say(f"export: {out} holds {origin}")


def export_adapters(experiment: Experiment, out: Path, name: str) -> None:
    """Writes the adapters of a run that trained some."""
    from mcr_jax.model import lora, store
    from mcr_jax.model.folder import refuse_taken
    from mcr_jax.model.sharding import make_mesh

    e = experiment
    if e.shape.lora is None or name == "base":
        raise UsageError("--adapters: this model has none; config.lora.rank trains some")
    refuse_taken(out)
    e.refuse_other(e.origin())
    which, mesh = e.config.sample.checkpoint, make_mesh(1, -1, 1)
    model, step = store.adapted(e.checkpoints, e.shape, mesh, which, e.config.seed)
    lora.save(model, out)
    console.say(f"export: {out} holds the adapters of step {step}")
