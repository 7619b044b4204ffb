"""Stage `build`: cases on disk to the TFDS dataset `medcasereasoning`.

In: a source "PATH[,PATH]" of JSONL, Parquet or a Hub snapshot folder, and for the dataset's config
`stitched` the traces that `mcr stitch` made of the cases. Out: the prepared dataset in a data_dir,
which `tfds.load` and `tfds.data_source` read.

A dataset appears whole or not at all: it is prepared aside, in a hidden folder beside its place,
and moved there by rename. What a killed run leaves is invisible to TFDS and swept by the next.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from mcr_jax import cases as cases_lib
from mcr_jax import errors
from mcr_jax.data import dataset, traces
from mcr_jax.data.statement_counts import statement_counts
from mcr_jax.data_builders.medcasereasoning import STITCHED, Builder

_ASIDE = ".mcr-build-"
_OLD = "replaced"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Summary of the dataset in the data_dir after `build`.

    Attributes:
      data_dir: The folder to give to `tfds.load(..., data_dir=...)`.
      version: The dataset's version.
      counts: Cases per split.
      statements: Statements per case (`statement_counts`), as the dataset's metadata holds them.
      fingerprint: SHA-256 of the source (`cases.source_fingerprint`).
      config: "stitched", or "" for the cases alone.
      traces_fingerprint: SHA-256 of the traces; "" without.
      already_done: Whether the same dataset stood there before and nothing was written.
    """

    data_dir: pathlib.Path
    version: str
    counts: Mapping[str, int]
    statements: dict[str, Any]
    fingerprint: str
    config: str
    traces_fingerprint: str
    already_done: bool

    @property
    def name(self) -> str:
        """Name that `tfds.load` takes."""
        return "/".join(filter(None, (dataset.NAME, self.config)))

    @property
    def loading(self) -> str:
        """A line of Python that reads it."""
        default = self.data_dir == dataset.resolve_data_dir(None)
        where = "" if default else f", data_dir={str(self.data_dir)!r}"
        split = next(iter(self.counts))
        return (
            "import mcr_jax.tfds, tensorflow_datasets as tfds; "
            f"cases = tfds.data_source({self.name!r}, split={split!r}{where})"
        )


def build(
    source: str,
    data_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    traces_path: str = "",
    origin: str = "",
) -> BuildReport:
    """Prepares the dataset, unless the same one is there already.

    TFDS's own progress bars are switched off for the rest of the process.

    Args:
      source: "PATH[,PATH]", as `cases.read_cases` takes it.
      data_dir: Folder of TFDS datasets; None for TFDS's default (TFDS_DATA_DIR, else
        ~/tensorflow_datasets).
      overwrite: Whether to prepare in any case, in place of whatever dataset is there.
      progress: Called with (cases written, cases in all).
      traces_path: The file that `mcr stitch` wrote, for the config `stitched`; "" for the dataset
        without a config. Each has its place, and the other stays as it is.
      origin: Where the source was downloaded from, for the dataset's metadata.

    Raises:
      UsageError: The source or the data_dir is none.
      McrError: The cases or the traces are bad, another dataset or another build is in the way, or
        the disk is full. A dataset that was there is untouched.
    """
    data_dir = dataset.resolve_data_dir(data_dir)
    cases = cases_lib.read_cases(source)
    report = BuildReport(
        data_dir=data_dir,
        version=str(Builder.VERSION),
        counts={
            split: count
            for split in cases_lib.SPLITS
            if (count := sum(case.split == split for case in cases))
        },
        statements=statement_counts(cases),
        fingerprint=cases_lib.source_fingerprint(cases),
        config=STITCHED.name if traces_path else "",
        traces_fingerprint=_fingerprint_of(traces_path),
        already_done=False,
    )
    target = data_dir / dataset.NAME / report.config / report.version
    try:
        with _lock(target.parent), _quiet():
            _sweep(target)
            if _is_built(report, overwrite):
                return dataclasses.replace(report, already_done=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=_ASIDE) as aside:
                builder = Builder(
                    source=cases,
                    traces=traces_path or None,
                    origin=origin,
                    config=report.config or None,
                    data_dir=aside,
                    progress=progress,
                )
                builder.download_and_prepare()
                if damaged := dataset.damaged_files(builder):
                    raise errors.McrError(
                        f"{damaged[0].name} was not written whole, nothing changed: run it again"
                    )
                _swap(pathlib.Path(builder.data_dir), target, pathlib.Path(aside))
    except OSError as error:
        reason = error.strerror or str(error)
        raise errors.McrError(
            f"{target} could not be written, nothing changed: {reason}"
        ) from error
    return report


def _is_built(wanted: BuildReport, overwrite: bool) -> bool:
    """Whether the wanted dataset stands there whole; raises if another one is in the way."""
    if overwrite:
        return False
    try:
        builder = dataset.open_builder(wanted.data_dir, wanted.config)
        there = dataset.fingerprint_of(builder)
    except dataset.MissingDatasetError:
        return False
    stitched = builder.info.metadata.get("traces_fingerprint", "")
    for what, found, given in (
        ("cases", there, wanted.fingerprint),
        ("traces", stitched, wanted.traces_fingerprint),
    ):
        if found != given:
            raise errors.McrError(
                f"{wanted.data_dir} holds a dataset of other {what} (fingerprint {found[:12]}, "
                f"this source has {given[:12]}): pass another --data_dir, or --overwrite to "
                "replace it"
            )
    same = wanted.statements.items() <= builder.info.metadata.items()  # else read another way
    return same and not dataset.damaged_files(builder)


def _fingerprint_of(traces_path: str) -> str:
    return traces.rows_digest(traces.read(pathlib.Path(traces_path))) if traces_path else ""


def _swap(new: pathlib.Path, target: pathlib.Path, aside: pathlib.Path) -> None:
    """Moves `new` to `target`; what was there goes to `aside`, from where `_sweep` can restore."""
    old = aside / _OLD
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:  # also when interrupted: `aside` is deleted next
        if old.exists() and not target.exists():
            old.rename(target)


def _sweep(target: pathlib.Path) -> None:
    """Removes what killed runs left; one killed between the two renames gives the old one back."""
    for aside in target.parent.glob(f"{_ASIDE}*"):
        old = aside / _OLD
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(aside)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other builds out of `folder`; the system lifts the lock of a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.McrError(
                f"another build is writing to {folder}: wait for it to end"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS: its bars and its warnings would garble our own progress."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
