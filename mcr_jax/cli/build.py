"""Prepares the TFDS dataset `medcasereasoning` from JSONL, Parquet or a Hub snapshot folder.

Without --source, from what the config names as data.source, for the experiment of --workdir.
Afterwards `tfds.load("medcasereasoning")` and `tfds.data_source("medcasereasoning")` work anywhere;
with --traces also "medcasereasoning/stitched", which has the trace of each case beside it.
"""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import SYNTHETIC, Experiment
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import McrError, UsageError
from mcr_jax.paths import local_folder


def main(argv: Sequence[str]) -> None:
    """`mcr build --source=PATH[,PATH] [--data_dir=DIR] [--overwrite]`."""
    flags = Flags("build", __doc__)
    flags.experiment()
    flags.string("source", "", "PATH[,PATH]: .jsonl, .parquet, or a folder of a Hub snapshot")
    flags.string("data_dir", "", "TFDS data_dir; default: TFDS's own")
    flags.string("traces", "", "WORKDIR/traces.parquet of mcr stitch: prepares stitched, too")
    flags.boolean("overwrite", "replace a dataset that was made from other cases")
    if not flags.parse(argv):
        return
    values = flags.values
    traces = _checked(values["traces"].value)
    if not values["source"].value and values["workdir"].value:
        experiment = Experiment.open(flags)
        with experiment.working():
            run(experiment, traces)
        return
    if not values["source"].value:
        raise UsageError("--source=PATH[,PATH] is missing, or --config=FILE.py with --workdir=DIR")
    data_dir, overwrite = values["data_dir"].value or None, values["overwrite"].value
    prepare(values["source"].value, data_dir, overwrite, traces)


def run(experiment: Experiment, traces: str = "") -> None:
    """Prepares the dataset of an experiment whose config names a source."""
    source, workdir = experiment.config.data.source, experiment.workdir
    if not source:
        raise UsageError("config.data.source names no cases; give --source=PATH[,PATH]")
    if source == SYNTHETIC:
        source = str(workdir.cases)
        _write_synthetic(experiment)
    prepare(source, experiment.data_dir, traces=traces)


def prepare(source: str, data_dir: object, overwrite: bool = False, traces: str = "") -> None:
    """Builds the cases alone and, given traces, with these; says what stands there afterwards."""
    for file in dict.fromkeys(("", traces)):
        _prepare(source, data_dir, overwrite, file)


def _checked(path: str) -> str:
    """The path of a file of traces, "" for none; one that cannot be read is refused at once."""
    if not path:
        return ""
    from mcr_jax.data import traces

    file = local_folder(path)
    traces.read(file)
    return str(file)


def _prepare(source: str, data_dir: object, overwrite: bool, traces: str) -> None:
    from mcr_jax.build import build
    from mcr_jax.data.statement_counts import describe

    with console.track("build", 0) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        report = build(source, data_dir, overwrite, show, traces)
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    what = "nothing to do, it holds these cases already" if report.already_done else "prepared"
    console.say(f"build: {report.name} {report.version} in {report.data_dir} {what} ({counts})")
    if not report.config:
        for line in describe(report.statements):
            console.say(f"build: {line}")


def _write_synthetic(experiment: Experiment) -> None:
    from mcr_jax import synthetic
    from mcr_jax.cases import write_jsonl

    folder, sizes = experiment.workdir.cases, dict(experiment.config.synthetic)
    paths = {split: folder / f"{split}.jsonl" for split, size in sizes.items() if size}
    if all(path.exists() for path in paths.values()):
        return
    made = synthetic.cases(experiment.config.seed, sizes)
    try:
        for split, path in paths.items():
            write_jsonl([case for case in made if case.split == split], path)
    except OSError as error:
        raise McrError(f"{folder}: cannot write the cases: {error.strerror}") from error
