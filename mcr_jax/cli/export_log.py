"""Writes completions and verdicts of one model as a log of inspect_ai, for its viewer and tools.

inspect_ai need not be installed. FILE.eval is its zip format, FILE.json its JSON format.
"""

from collections.abc import Sequence
from pathlib import Path

from mcr_jax import artifacts, console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import exported_model, opened, written
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.judge_specs import headline


def main(argv: Sequence[str]) -> None:
    """Runs `mcr export-log --workdir=DIR --out=FILE.eval [--model=NAME]`."""
    flags = Flags("export-log", __doc__)
    flags.experiment()
    flags.string("out", "", "file to write, FILE.eval or FILE.json; replaced if it is there")
    flags.string("model", "", "name in config.sample.models; not needed if there is only one")
    if not flags.parse(argv):
        return
    if not (out := flags.values["out"].value):
        raise UsageError("--out=FILE.eval is missing")
    path = written("out", out)
    experiment = opened(flags)
    model = exported_model(experiment, flags.values["model"].value)
    run(experiment, path, model)


def run(experiment: Experiment, out: Path, model: str) -> None:
    """Writes the file.

    Raises:
      McrError: results.json is of another headline judge.
    """
    from mcr_jax.adapters.inspect_log import write_log
    from mcr_jax.generate.ledger import opened as open_ledger

    e, judge = experiment, headline(experiment.config).name
    if e.workdir.results.exists() and (then := artifacts.judges(e.workdir)[0]) != judge:
        raise McrError(
            f"{e.workdir.results} is of judge {then}, and the config now names {judge}: run "
            "`mcr score`, or `mcr eval`, to make it anew"
        )
    cases, data = e.cases(e.config.data.eval_split), artifacts.section(e.workdir, "data")
    with open_ledger(e.workdir, readonly=True) as ledger:
        counts = write_log(ledger, e.config, cases, e.prompt, model, out, data)
    left = f"; {counts['missing']} more are missing" if counts["missing"] else ""
    held = f"{counts['samples']} completions of {model}"
    console.say(f"export-log: {out} holds {held} with the verdicts of {judge}{left}")
