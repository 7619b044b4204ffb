"""Build stage: prepares the TFDS dataset from files, the fictional clinic or the Hub."""

from mcr_jax import console, synthetic
from mcr_jax.build.prepare import BuildReport, build
from mcr_jax.cases import write_jsonl
from mcr_jax.data import hub
from mcr_jax.data.statement_counts import describe
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment.experiment import SYNTHETIC, Experiment

REVISION = "main"  # default revision of the published cases on the Hub


def run(experiment: Experiment, traces: str = "", revision: str = "") -> BuildReport:
    """Prepares the dataset of an experiment from config.data.source, by default from the Hub."""
    source, workdir = experiment.config.data.source, experiment.workdir
    if source and revision:
        raise UsageError(f"--revision needs the Hub, but config.data.source={source!r}: omit it")
    if source == SYNTHETIC:
        source = str(workdir.cases)
        _write_synthetic(experiment)
    return prepare(source, experiment.data_dir, traces=traces, revision=revision)


def prepare(
    source: str, data_dir: object, overwrite: bool = False, traces: str = "", revision: str = ""
) -> BuildReport:
    """Builds the dataset and, given traces, also its config `stitched`; returns the last report.

    Args:
      source: "PATH[,PATH]"; "" downloads the published cases.
      data_dir: None for the default of TFDS.
      overwrite: replaces a dataset of other cases.
      traces: file of `mcr stitch`, or "".
      revision: revision of the download; "" for the newest.
    """
    origin = ""
    if not source:
        source, origin = _downloaded(revision or REVISION)
    for file in dict.fromkeys(("", traces)):
        report = _prepare(source, data_dir, overwrite, file, origin)
    return report


def _downloaded(revision: str) -> tuple[str, str]:
    """Downloads the published cases; returns their folder and the origin to record."""
    with console.track("download", 0) as progress:
        snapshot = hub.download(
            revision, lambda done, total: progress.update(done >> 20, "MB", total >> 20)
        )
    console.say(f"build: cases of {snapshot.origin}")
    if snapshot.commit != revision:
        console.say(f"build: to get the same cases again: --revision={snapshot.commit}")
    return str(snapshot.folder), snapshot.origin


def _prepare(
    source: str, data_dir: object, overwrite: bool, traces: str, origin: str
) -> BuildReport:
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
    folder, sizes = experiment.workdir.cases, dict(experiment.config.synthetic)
    paths = {split: folder / f"{split}.jsonl" for split, size in sizes.items() if size}
    if all(path.exists() for path in paths.values()):
        return
    cases = synthetic.cases(experiment.config.seed, sizes)
    try:
        for split, path in paths.items():
            write_jsonl([case for case in cases if case.split == split], path)
    except OSError as error:
        raise McrError(f"{folder}: cannot write the cases: {error.strerror}") from error
