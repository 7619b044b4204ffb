"""Writes the completions of one model as JSONL, for NAME=file:FILE.jsonl of config.sample.models.

Another workdir then measures the same completions, with another judge for instance.
"""

from collections.abc import Sequence
from pathlib import Path

from mcr_jax import console, model_specs
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import exported_model, opened, written
from mcr_jax.errors import UsageError
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """Runs `mcr export-completions --workdir=DIR --out=FILE.jsonl [--model=NAME]`."""
    flags = Flags("export-completions", __doc__)
    flags.experiment()
    flags.string("out", "", "file to write; replaced if it is there")
    flags.string("model", "", "name in config.sample.models; not needed if there is only one")
    if not flags.parse(argv):
        return
    if not (out := flags.values["out"].value):
        raise UsageError("--out=FILE.jsonl is missing")
    path = written("out", out)
    experiment = opened(flags)
    model = exported_model(experiment, flags.values["model"].value)
    run(experiment, path, model)


def run(experiment: Experiment, out: Path, model: str) -> None:
    """Writes the file; says which completions it lacks."""
    from mcr_jax.data.dataset import MissingDatasetError
    from mcr_jax.generate.ledger import opened as open_ledger
    from mcr_jax.generate.recorded import write_completions

    e, without = experiment, ""
    try:
        cases = e.cases(e.config.data.eval_split)
    except MissingDatasetError as error:
        cases, without = (), f", without pmcid: {error}"
    with open_ledger(e.workdir, readonly=True) as ledger:
        written, missing = write_completions(ledger, model, cases, out)
    console.say(f"export-completions: {out} holds {written} completions of {model}{without}")
    if missing:
        (spec,) = (spec for spec in model_specs.specs(e.config) if spec.name == model)
        hint = "`mcr sample` draws them"
        if spec.kind == model_specs.FILE:
            hint = f"{spec.value} did not have them"
        console.say(f"export-completions: {missing} more are wanted and not there; {hint}")
