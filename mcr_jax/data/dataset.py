"""Reads the prepared TFDS dataset: `Case` objects, lazily or all at once, and its fingerprint.

TensorFlow is not imported.
"""

import contextlib
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import pyarrow as pa
import tensorflow_datasets as tfds
from google.protobuf import json_format, message
from pyarrow import parquet

from mcr_jax import cases as cases_lib
from mcr_jax import errors
from mcr_jax.paths import expanded

NAME = "medcasereasoning"
_REMEDY = "run `mcr build`"


class MissingDatasetError(errors.McrError):
    """The data_dir holds no dataset, or only a part of one."""


def resolve_data_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the local folder of TFDS datasets; for None TFDS's default, as of TFDS_DATA_DIR.

    Raises:
      UsageError: `data_dir` is an address, not a local folder, or names an unknown ~USER.
    """
    path = os.fspath(tfds.core.constants.DATA_DIR if data_dir is None else data_dir)
    if "://" in path:
        raise errors.UsageError(f"data_dir {path} is not a local folder: mount the bucket first")
    return expanded(path)


def open_builder(data_dir: str | os.PathLike | None, config: str = "") -> tfds.core.DatasetBuilder:
    """Opens the newest version of the dataset in `data_dir`, as `tfds.load` would.

    Args:
      data_dir: written by `mcr build`; None for TFDS's default.
      config: "stitched", or "" for the cases only.

    Raises:
      MissingDatasetError: there is none, or its description cannot be read.
    """
    folder = resolve_data_dir(data_dir) / NAME / config
    found = [file.parent.name for file in folder.glob("*/dataset_info.json")]
    versions = [tfds.core.Version(name) for name in found if tfds.core.Version.is_valid(name)]
    if not versions:
        where = "" if data_dir is None else f" --data_dir={shlex.quote(os.fspath(data_dir))}"
        raise MissingDatasetError(f"{folder} holds no dataset: run `mcr build{where}`")
    version = folder / str(max(versions))
    try:
        return tfds.builder_from_directory(version)
    except (json_format.Error, ValueError, OSError) as error:
        raise MissingDatasetError(
            f"{version} is not a whole dataset ({_first_line(error)}): {_REMEDY}"
        ) from error


class CaseSource(Sequence[cases_lib.Case]):
    """Cases of one split in the order of the dataset, the same on every machine.

    Each is read lazily and checked against its fingerprint.
    """

    def __init__(self, data_dir: str | os.PathLike | None, split: str):
        """Opens a split.

        Args:
          data_dir: written by `mcr build`; None for TFDS's default.
          split: "train", "val" or "test".

        Raises:
          UsageError: `split` is another.
          MissingDatasetError: the dataset is missing, or a file of it is missing or damaged.
          McrError: the dataset cannot be read, or holds no cases of the split.
        """
        if split not in cases_lib.SPLITS:
            raise errors.UsageError(f"split {split!r} is not one of {', '.join(cases_lib.SPLITS)}")
        builder = open_builder(data_dir)
        fingerprint_of(builder)  # raises for a dataset of this name that is not ours
        if split not in builder.info.splits:
            raise errors.McrError(f"split {split} of {builder.data_dir} holds no cases")
        if damaged := damaged_files(builder):
            raise MissingDatasetError(f"{damaged[0]} is missing or damaged: {_REMEDY}")
        self._name = f"split {split} of {builder.data_dir}"
        with _reading(self._name):
            self._source = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, row: int) -> cases_lib.Case: ...

    @overload
    def __getitem__(self, row: slice) -> list[cases_lib.Case]: ...

    def __getitem__(self, row):
        """Reads a case, or those of a slice.

        Raises:
          McrError: a row cannot be read, or differs from its fingerprint; rows count from 1.
        """
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        index = range(len(self))[row]
        with _reading(f"{self._name}, row {index + 1},"):
            return _as_case(self._source[index])


def load_cases(data_dir: str | os.PathLike | None, split: str) -> list[cases_lib.Case]:
    """Reads all cases of one split; raises as `CaseSource` and its rows."""
    return list(CaseSource(data_dir, split))


def dataset_fingerprint(data_dir: str | os.PathLike | None) -> str:
    """Returns the fingerprint of the source that the dataset was built from (64 hex digits).

    Raises:
      MissingDatasetError: the dataset is missing or only half prepared.
      McrError: another program prepared the dataset.
    """
    return fingerprint_of(open_builder(data_dir))


def damaged_files(builder: tfds.core.DatasetBuilder) -> list[pathlib.Path]:
    """Returns the data files that are missing, unreadable, or have a wrong number of examples.

    Reads the files' footers only.
    """
    damaged = []
    for split in builder.info.splits.values():
        for path, examples in zip(split.filepaths, split.shard_lengths, strict=True):
            file = pathlib.Path(os.fspath(path))
            try:
                whole = parquet.read_metadata(file).num_rows == examples
            except (pa.ArrowException, OSError):
                whole = False
            if not whole:
                damaged.append(file)
    return damaged


def fingerprint_of(builder: tfds.core.DatasetBuilder) -> str:
    """Returns the fingerprint of an open dataset (`dataset_fingerprint`)."""
    fingerprint = (builder.info.metadata or {}).get("source_fingerprint")
    if not isinstance(fingerprint, str):
        raise errors.McrError(
            f"{builder.data_dir} carries no fingerprint: another program prepared it; "
            f"{_REMEDY} with another --data_dir or with --overwrite"
        )
    return fingerprint


def _as_case(example: Mapping[str, Any]) -> cases_lib.Case:
    # Older datasets have no `license`; it is empty then.
    fields = [name for name in cases_lib.FIELDS if name in example]
    case = cases_lib.Case(**{name: example[name].decode() for name in fields})
    if case.fingerprint != example["fingerprint"].decode():
        raise ValueError(f"case {case.pmcid} differs from its fingerprint")
    return case


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raises McrError in one line that begins with `what` for the errors of a damaged dataset."""
    try:
        yield
    except (
        errors.McrError,  # of a Case
        message.DecodeError,
        pa.ArrowException,
        ValueError,
        OSError,
    ) as error:
        raise errors.McrError(
            f"{what} cannot be read ({_first_line(error)}): {_REMEDY} --overwrite"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
