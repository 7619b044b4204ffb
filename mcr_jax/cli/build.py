"""Prepares the TFDS dataset `medcasereasoning`, and ends with the line that loads it.

The cases come from --source, else from what the config names as data.source, for the experiment of
--workdir, else from the Hugging Face Hub: zou-lab/MedCaseReasoning at --revision. With --traces the
dataset "medcasereasoning/stitched", which has the trace of each case beside it, is prepared too.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment.experiment import SYNTHETIC, Experiment
from mcr_jax.paths import local_folder

if TYPE_CHECKING:
    from mcr_jax.build.prepare import BuildReport

_REVISION = "main"


def main(argv: Sequence[str]) -> None:
    """`mcr build [--source=PATH[,PATH] | --revision=COMMIT] [--data_dir=DIR] [--overwrite]`."""
    flags = Flags("build", __doc__)
    flags.experiment()
    flags.string("source", "", "PATH[,PATH]: .jsonl, .parquet, or a folder of a Hub snapshot")
    flags.string("revision", "", f"commit, branch or tag on the Hub; default: {_REVISION}")
    flags.string("data_dir", "", "TFDS data_dir; default: TFDS's own")
    flags.string("traces", "", "WORKDIR/traces.parquet of mcr stitch: prepares stitched, too")
    flags.boolean("overwrite", "replace a dataset that was made from other cases")
    if not flags.parse(argv):
        return
    values = {name: flags.values[name].value for name in ("source", "revision", "workdir")}
    traces, data_dir = _checked(flags.values["traces"].value), flags.values["data_dir"].value
    if values["source"] and values["revision"]:
        raise UsageError("--revision is one of the Hub: give it or --source, not both")
    if values["workdir"] and not values["source"]:
        experiment = opened(flags)
        with experiment.working():
            report = run(experiment, traces, values["revision"])
    else:
        overwrite = flags.values["overwrite"].value
        report = prepare(values["source"], data_dir or None, overwrite, traces, values["revision"])
    console.say(f"build: to load it in Python: {report.loading}")


def run(experiment: Experiment, traces: str = "", revision: str = "") -> "BuildReport":
    """Prepares the dataset of an experiment from what its config names, else from the Hub."""
    source, workdir = experiment.config.data.source, experiment.workdir
    if source and revision:
        raise UsageError(f"--revision is one of the Hub, but config.data.source={source!r}")
    if source == SYNTHETIC:
        source = str(workdir.cases)
        _write_synthetic(experiment)
    return prepare(source, experiment.data_dir, traces=traces, revision=revision)


def prepare(
    source: str, data_dir: object, overwrite: bool = False, traces: str = "", revision: str = ""
) -> "BuildReport":
    """Builds the cases alone and, given traces, with these; says what stands there afterwards.

    Args:
      source: "PATH[,PATH]"; "" downloads the published cases.
      data_dir: None for the default of TFDS.
      overwrite: whether to replace a dataset of other cases.
      traces: the file of `mcr stitch`, or "".
      revision: of the download; "" for the newest.
    """
    origin = ""
    if not source:
        source, origin = _downloaded(revision or _REVISION)
    for file in dict.fromkeys(("", traces)):
        report = _prepare(source, data_dir, overwrite, file, origin)
    return report


def _downloaded(revision: str) -> tuple[str, str]:
    """The folder of the published cases, and the origin to record."""
    from mcr_jax.data import hub

    with console.track("download", 0) as progress:
        snapshot = hub.download(
            revision, lambda done, total: progress.update(done >> 20, "MB", total >> 20)
        )
    console.say(f"build: cases of {snapshot.origin}")
    if snapshot.commit != revision:
        console.say(f"build: the same ones another time: --revision={snapshot.commit}")
    return str(snapshot.folder), snapshot.origin


def _checked(path: str) -> str:
    """The path of a file of traces, "" for none; one that cannot be read is refused at once."""
    if not path:
        return ""
    from mcr_jax.data import traces

    file = local_folder(path)
    traces.read(file)
    return str(file)


def _prepare(
    source: str, data_dir: object, overwrite: bool, traces: str, origin: str
) -> "BuildReport":
    from mcr_jax.build.prepare import build
    from mcr_jax.data.statement_counts import describe

    with console.track("build", 0) as progress:

        def show(done: int, total: int) -> None:
            progress.update(done, total=total)

        report = build(source, data_dir, overwrite, show, traces, origin)
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    what = "nothing to do, it holds these cases already" if report.already_done else "prepared"
    console.say(f"build: {report.name} {report.version} in {report.data_dir} {what} ({counts})")
    if not report.config:
        for line in describe(report.statements):
            console.say(f"build: {line}")
    return report


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
