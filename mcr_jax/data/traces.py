"""Reasoning traces in place of the statements, one row of Parquet per case fingerprint.

`mcr stitch` writes the file; `mcr train` and `mcr build` read it and check each row.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from mcr_jax import completion, disk, workdir
from mcr_jax.cases import Case
from mcr_jax.errors import McrError

STITCHED, JOINED = "stitched", "joined"  # sources: written by a model; the statements in sequence

_TAG = re.compile(r"</?\s*(?:think|answer)\b", re.IGNORECASE)
_SCHEMA = pa.schema(
    [
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("trace", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("outcomes", pa.list_(pa.string()), nullable=False),
        pa.field("faults_first", pa.list_(pa.string()), nullable=False),
        pa.field("faults", pa.list_(pa.string()), nullable=False),
        pa.field("coverage_first", pa.float64()),
        pa.field("coverage", pa.float64()),
        pa.field("additions_first", pa.list_(pa.string()), nullable=False),
        pa.field("additions", pa.list_(pa.string()), nullable=False),
        pa.field("length_first", pa.float64()),
        pa.field("length", pa.float64(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Trace of one case and its audit.

    Attributes:
      fingerprint, split: of the case.
      trace: the text to train on.
      source: STITCHED or JOINED.
      model: that wrote it, as in the ledger.
      model_version: as the model reported it.
      prompt: digest of the prompt.
      attempts: number of samples drawn.
      outcomes: of each sample.
      faults_first, faults: of the first and of the last sample; the last has none if STITCHED.
      coverage_first, coverage: share of the statements that the first sample and `trace` keep, by a
        judge; None without one.
      additions_first, additions: names of diseases and numbers in the same two without a source.
      length_first, length: words of the same two per word of the statements; None where the first
        sample has no text.
    """

    fingerprint: str
    split: str
    trace: str
    source: str
    model: str
    model_version: str
    prompt: str
    attempts: int
    outcomes: tuple[str, ...]
    faults_first: tuple[str, ...]
    faults: tuple[str, ...]
    coverage_first: float | None
    coverage: float | None
    additions_first: tuple[str, ...]
    additions: tuple[str, ...]
    length_first: float | None
    length: float


def write(path: Path, rows: Sequence[Trace]) -> None:
    """Writes `rows`, by split and fingerprint. Raises McrError, the old file intact."""
    ordered = sorted(rows, key=lambda row: (row.split, row.fingerprint))
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in ordered], schema=_SCHEMA)
    with disk.atomic_write(path) as file:
        parquet.write_table(table, file, compression="zstd", write_page_checksum=True)


def read(path: Path) -> list[Trace]:
    """Reads all rows, each checked as a training target.

    Raises:
      McrError: the file is missing or damaged, a trace is empty or would break its completion, a
        source is unknown, or a case occurs twice; names the row, from 1.
    """
    try:
        table = parquet.ParquetFile(path, page_checksum_verification=True).read()
        rows = table.cast(_SCHEMA).to_pylist()
    except FileNotFoundError:
        raise McrError(f"{path}: no traces here; run `mcr stitch` first") from None
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: not UTF-8, columns
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise McrError(
            f"{path} is not a whole file of traces ({reason}): run `mcr stitch` again"
        ) from error
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        field, problem = "trace", _problem(row)
        if row["source"] not in (STITCHED, JOINED):
            field, problem = "source", f"is neither {STITCHED} nor {JOINED}"
        if (first := seen.setdefault(row["fingerprint"], number)) != number:
            field, problem = "fingerprint", f"is of the same case as row {first}"
        if problem:
            where = f"{path}, row {number}, field {field}"
            raise McrError(f"{where}: {problem}; run `mcr stitch` again")
    lists = [field.name for field in _SCHEMA if pa.types.is_list(field.type)]
    return [Trace(**row | {name: tuple(row[name]) for name in lists}) for row in rows]


def load(path: Path, cases: Sequence[Case]) -> dict[str, str]:
    """Reads the trace of each of `cases`, by fingerprint.

    Raises:
      McrError: as `read`, or a case has no trace.
    """
    known = {row.fingerprint: row.trace for row in read(path)}
    require(path, known, cases)
    return {case.fingerprint: known[case.fingerprint] for case in cases}


def require(path: Path, known: Mapping[str, object], cases: Sequence[Case]) -> None:
    """Raises McrError unless `known`, read from `path`, has every one of `cases`."""
    missing = [case for case in cases if case.fingerprint not in known]
    if missing:
        first = missing[0].pmcid or missing[0].fingerprint[:12]
        raise McrError(
            f"{path} has no trace of {len(missing)} of {len(cases)} cases (the first is {first}): "
            "it was made from other cases; run `mcr stitch` again"
        )


def digest(traces: Mapping[str, str]) -> str:
    """Returns the SHA-256 (hex) of traces by fingerprint, independent of their order."""
    return workdir.digest(sorted(traces.items()))


def rows_digest(rows: Iterable[Trace]) -> str:
    """Returns the SHA-256 (hex) of the packaged fields of rows, independent of their order."""
    return workdir.digest(sorted((row.fingerprint, row.trace, row.source) for row in rows))


def breaks(trace: str) -> bool:
    """Returns whether a completion with this trace would not parse back to it."""
    read = completion.parse(completion.render(trace, "-"))
    whole = (read.trace, read.answer) == (trace.strip(), "-")
    return not whole or bool(_TAG.search(trace)) or "\0" in trace


def _problem(row: Mapping[str, str]) -> str:
    if not row["trace"].strip():
        return "is empty"
    return "holds a tag of completions, or a NUL" if breaks(row["trace"]) else ""
