"""The prepared TFDS dataset, read back as cases.

In: a data_dir that `mcr build` has filled. Out: `Case` objects, all at once or as they are asked
for, or the fingerprint of the source.
TensorFlow is not needed and not imported.
"""

import contextlib
import os
import pathlib
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
_HOW = "run `mcr build`"


class MissingDatasetError(errors.McrError):
    """There is no dataset in the data_dir, or only a part of one."""


def resolve_data_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """The local folder of TFDS datasets; None means TFDS's own default, as TFDS_DATA_DIR sets it.

    Raises:
      UsageError: `data_dir` is an address, not a local folder, or begins with ~ and no user.
    """
    path = os.fspath(tfds.core.constants.DATA_DIR if data_dir is None else data_dir)
    if "://" in path:
        raise errors.UsageError(f"data_dir {path} is not a local folder: mount the bucket first")
    return expanded(path)


def open_builder(data_dir: str | os.PathLike | None, config: str = "") -> tfds.core.DatasetBuilder:
    """The newest version of the dataset in `data_dir`, as `tfds.load` would choose it, to read.

    Args:
      data_dir: Folder that `mcr build` wrote to; None for TFDS's default.
      config: "stitched", or "" for the cases alone.

    Raises:
      MissingDatasetError: There is none, or its description cannot be read.
    """
    folder = resolve_data_dir(data_dir) / NAME / config
    found = [file.parent.name for file in folder.glob("*/dataset_info.json")]
    versions = [tfds.core.Version(name) for name in found if tfds.core.Version.is_valid(name)]
    if not versions:
        raise MissingDatasetError(f"{folder} holds no dataset: {_HOW}")
    version = folder / str(max(versions))
    try:
        return tfds.builder_from_directory(version)
    except (json_format.Error, ValueError, OSError) as error:
        raise MissingDatasetError(
            f"{version} is not a whole dataset ({_first_line(error)}): {_HOW}"
        ) from error


class CaseSource(Sequence[cases_lib.Case]):
    """The cases of one split in the order of the dataset, the same on every machine.

    Each is made, and checked against its fingerprint, when it is asked for.
    """

    def __init__(self, data_dir: str | os.PathLike | None, split: str):
        """Opens a split.

        Args:
          data_dir: Folder that `mcr build` wrote to; None for TFDS's default.
          split: "train", "val" or "test".

        Raises:
          UsageError: `split` is none of these.
          MissingDatasetError: The dataset is missing, or a file of it is missing or damaged.
          McrError: The dataset cannot be read, or holds no cases of the split.
        """
        if split not in cases_lib.SPLITS:
            raise errors.UsageError(f"split {split!r} is not one of {', '.join(cases_lib.SPLITS)}")
        builder = open_builder(data_dir)
        fingerprint_of(builder)  # raises for a dataset of this name that is not ours
        if split not in builder.info.splits:
            raise errors.McrError(f"split {split} of {builder.data_dir} holds no cases")
        if damaged := damaged_files(builder):
            raise MissingDatasetError(f"{damaged[0]} is missing or damaged: {_HOW}")
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
        """One case, or those of a slice.

        Raises:
          McrError: A row cannot be read, or differs from its fingerprint; rows count from 1.
        """
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        index = range(len(self))[row]
        with _reading(f"{self._name}, row {index + 1},"):
            return _as_case(self._source[index])


def load_cases(data_dir: str | os.PathLike | None, split: str) -> list[cases_lib.Case]:
    """All cases of one split, read now: `CaseSource` says of which, in what order, and what fails.

    Raises:
      UsageError, McrError: As `CaseSource` and its rows.
    """
    return list(CaseSource(data_dir, split))


def dataset_fingerprint(data_dir: str | os.PathLike | None) -> str:
    """The fingerprint of the source that the dataset was built from (64 hex digits).

    Raises:
      MissingDatasetError: The dataset is missing or was left half-prepared.
      McrError: Something other than our builder prepared the dataset.
    """
    return fingerprint_of(open_builder(data_dir))


def damaged_files(builder: tfds.core.DatasetBuilder) -> list[pathlib.Path]:
    """The data files that are missing, unreadable, or hold fewer or more examples than they should.

    Reads the files' footers only. Empty for a dataset that is whole.
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
    """Fingerprint of an open dataset (`dataset_fingerprint`)."""
    fingerprint = (builder.info.metadata or {}).get("source_fingerprint")
    if not isinstance(fingerprint, str):
        raise errors.McrError(
            f"{builder.data_dir} carries no fingerprint: another program prepared it; "
            f"{_HOW} with another --data_dir or with --overwrite"
        )
    return fingerprint


def _as_case(example: Mapping[str, Any]) -> cases_lib.Case:
    # A dataset of before there was a field, `license`, is read as one in which it is empty.
    fields = [name for name in cases_lib.FIELDS if name in example]
    case = cases_lib.Case(**{name: example[name].decode() for name in fields})
    if case.fingerprint != example["fingerprint"].decode():
        raise ValueError(f"case {case.pmcid} differs from its fingerprint")
    return case


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns what a damaged dataset raises into one line that begins with `what`."""
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
            f"{what} cannot be read ({_first_line(error)}): {_HOW} --overwrite"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
