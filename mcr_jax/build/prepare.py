"""Prepares the TFDS dataset `medcasereasoning` from cases on disk.

In: a source "PATH[,PATH]" of JSONL, Parquet or a Hub snapshot folder, and for the dataset config
`stitched` the traces of `mcr stitch`. Out: the prepared dataset in a data_dir, which `tfds.load`
and `tfds.data_source` read.

Writes are atomic: the dataset is prepared in a hidden folder next to its final one and renamed.
TFDS does not see what a killed run leaves, and the next run removes it.
"""

import collections
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

_HIDDEN_PREFIX = ".mcr-build-"  # of folders in which datasets are prepared
_REPLACED = "replaced"  # the old dataset in such a folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Summary of the dataset in the data_dir after `build`.

    Attributes:
      data_dir: the folder for `tfds.load(..., data_dir=...)`.
      version: version of the dataset.
      counts: cases per split.
      statements: statistics of statements per case (`statement_counts`), from the metadata.
      fingerprint: SHA-256 of the source (`cases.source_fingerprint`).
      config: "stitched", or "" for the dataset without traces.
      traces_fingerprint: SHA-256 of the traces; "" without.
      already_done: True if the dataset existed before and nothing was written.
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
        """Name of the dataset for `tfds.load`."""
        return "/".join(filter(None, (dataset.NAME, self.config)))

    @property
    def loading(self) -> str:
        """Line of Python that loads the dataset."""
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
    """Prepares the dataset, unless the same one exists.

    Disables the progress bars of TFDS for the rest of the process.

    Args:
      source: "PATH[,PATH]", see `cases.read_cases`.
      data_dir: folder of TFDS datasets; None for TFDS's default (TFDS_DATA_DIR, else
        ~/tensorflow_datasets).
      overwrite: replaces an existing dataset.
      progress: called with (cases written, total cases).
      traces_path: file of `mcr stitch`, to prepare the config `stitched`; "" for the dataset
        without a config. Both exist side by side.
      origin: source of the download, for the dataset's metadata.

    Raises:
      UsageError: the source or the data_dir does not exist.
      McrError: cases or traces are invalid, another dataset exists or another build is running, or
        the disk is full. An existing dataset stays unchanged.
    """
    data_dir = dataset.resolve_data_dir(data_dir)
    cases = cases_lib.read_cases(source)
    counts = collections.Counter(case.split for case in cases)
    report = BuildReport(
        data_dir=data_dir,
        version=str(Builder.VERSION),
        counts={split: counts[split] for split in cases_lib.SPLITS if split in counts},
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
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=_HIDDEN_PREFIX) as hidden:
                builder = Builder(
                    source=cases,
                    traces=traces_path or None,
                    origin=origin,
                    config=report.config or None,
                    data_dir=hidden,
                    progress=progress,
                )
                builder.download_and_prepare()
                if damaged := dataset.damaged_files(builder):
                    raise errors.McrError(
                        f"{damaged[0].name} is incomplete, nothing changed: run the command again"
                    )
                _swap(pathlib.Path(builder.data_dir), target, pathlib.Path(hidden))
    except OSError as error:
        reason = error.strerror or str(error)
        raise errors.McrError(
            f"{target} could not be written, nothing changed: {reason}"
        ) from error
    return report


def _is_built(wanted: BuildReport, overwrite: bool) -> bool:
    """Returns True if the wanted dataset exists and is whole; raises if another one exists."""
    if overwrite:
        return False
    try:
        builder = dataset.open_builder(wanted.data_dir, wanted.config)
        present = dataset.fingerprint_of(builder)
    except dataset.MissingDatasetError:
        return False
    stitched = builder.info.metadata.get("traces_fingerprint", "")
    for what, found, given in (
        ("cases", present, wanted.fingerprint),
        ("traces", stitched, wanted.traces_fingerprint),
    ):
        if found != given:
            raise errors.McrError(
                f"{wanted.data_dir} holds a dataset of other {what} (fingerprint {found[:12]}, "
                f"this source has {given[:12]}): pass another --data_dir, or --overwrite to "
                "replace it"
            )
    same = wanted.statements.items() <= builder.info.metadata.items()  # differs if parsing changed
    return same and not dataset.damaged_files(builder)


def _fingerprint_of(traces_path: str) -> str:
    return traces.rows_digest(traces.read(pathlib.Path(traces_path))) if traces_path else ""


def _swap(new: pathlib.Path, target: pathlib.Path, hidden: pathlib.Path) -> None:
    """Moves `new` to `target` and an old dataset into `hidden`, where `_sweep` can restore it."""
    old = hidden / _REPLACED
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:  # also when interrupted: `hidden` is deleted next
        if old.exists() and not target.exists():
            old.rename(target)


def _sweep(target: pathlib.Path) -> None:
    """Removes the folders of killed runs; restores the dataset of a run killed while renaming."""
    for hidden in target.parent.glob(f"{_HIDDEN_PREFIX}*"):
        old = hidden / _REPLACED
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(hidden)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Locks `folder` against other builds; the system releases the lock of a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.McrError(f"another build writes to {folder}: wait for its end") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences bars and warnings of TFDS, which would garble our own progress lines."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
