"""Reads, checks and writes clinical cases.

In: JSONL files, Parquet files, or the folder of a Hub snapshot. Out: `Case` objects, all valid, or
one `McrError` that names each bad row.

Importing this module needs the standard library only.
"""

import collections
import dataclasses
import datetime
import functools
import hashlib
import html.entities
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mcr_jax import disk, errors, statements
from mcr_jax.paths import expanded

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}
_SUFFIXES = (".jsonl", ".parquet")
_MAX_REPORTED = 20  # bad rows in one error
# An HTML entity with its semicolon: "&lt" in "&ltd" or in a URL is not one.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def _provenance(doc: str, added_later: bool = False) -> Any:
    return dataclasses.field(default="", metadata={"doc": doc, "added_later": added_later})


def _content(doc: str) -> Any:
    return dataclasses.field(metadata={"doc": doc})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One clinical case with its fields as published, except for decoded HTML entities.

    A new field is one line here with `added_later`: the fingerprints of sources that lack it stay.

    Raises:
      McrError: a field is not text, holds NUL or a lone surrogate, or a content field is empty.
    """

    pmcid: str = _provenance("PubMed Central identifier of the article; it attributes the case.")
    title: str = _provenance("Title of the article. Often holds the diagnosis: no prompt shows it.")
    journal: str = _provenance("Journal of the article.")
    article_link: str = _provenance("Address of the article.")
    publication_date: str = _provenance("Date of publication, as the source writes it.")
    license: str = _provenance('License of the article, such as "CC BY 4.0".', added_later=True)
    text: str = _provenance("Full text of the article. It holds the diagnosis: no prompt shows it.")
    case_prompt: str = _content("The presentation, before any differential.")
    diagnostic_reasoning: str = _content("The clinician's numbered statements, as published.")
    final_diagnosis: str = _content("The label.")
    split: str = _provenance("train, val or test.")

    def __post_init__(self) -> None:
        if found := list(_problems(vars(self))):
            raise errors.McrError("; ".join(f"{field} {problem}" for field, problem in found))

    @functools.cached_property
    def statements(self) -> tuple[str, ...]:
        """The clinician's statements in order, without numbers; at least one."""
        return statements.parse_statements(self.diagnostic_reasoning)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON of pmcid and the three content fields.

        Independent of split and other provenance, which differ between sources of the same case.
        """
        return _sha256({name: getattr(self, name) for name in _IDENTITY})

    def asdict(self) -> dict[str, str]:
        """Returns the fields by name, in the order of `FIELDS`."""
        return {name: getattr(self, name) for name in FIELDS}


DOCS = {field.name: field.metadata["doc"] for field in dataclasses.fields(Case)}
FIELDS = tuple(DOCS)
CONTENT = tuple(f.name for f in dataclasses.fields(Case) if f.default is dataclasses.MISSING)
PROVENANCE = tuple(name for name in FIELDS if name not in (*CONTENT, "split"))
_IDENTITY = ("pmcid", *CONTENT)
_ADDED_LATER = {f.name for f in dataclasses.fields(Case) if f.metadata.get("added_later")}


def source_fingerprint(cases: Iterable[Case]) -> str:
    """Returns the SHA-256 (64 hex digits) of a set of cases, independent of their order.

    Covers every field, since the dataset contains every field. Empty fields that were added later
    are left out, which keeps the value of older sources.
    """
    rows = (case.asdict().items() for case in cases)
    known = ({name: text for name, text in row if text or name not in _ADDED_LATER} for row in rows)
    return _sha256(sorted(map(_sha256, known)))


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _problems(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (field, problem) for the invalid fields of one case."""
    bad = set()
    for name in FIELDS:
        value = row.get(name, "")
        if not isinstance(value, str):
            problem = f"is {type(value).__name__}, not text"
        elif "\0" in value:
            problem = "holds a NUL character"
        elif not _encodable(value):
            problem = "holds a lone surrogate, which is not valid Unicode text"
        elif name in CONTENT and not value.strip():
            problem = "is empty"
        elif name == "split" and value not in ("", *SPLITS):
            problem = f"is {value!r}, not one of {', '.join(SPLITS)}"
        else:
            continue
        bad.add(name)
        yield name, problem
    if "diagnostic_reasoning" not in bad and not statements.parse_statements(
        row["diagnostic_reasoning"]
    ):
        yield "diagnostic_reasoning", "holds numbers but no statement"


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Row(NamedTuple):
    """Row of a file: its location, and its fields or the problem of the whole row."""

    where: str
    fields: Mapping[str, Any] | None
    problem: str = ""


def parse_source(source: str) -> tuple[pathlib.Path, ...]:
    """Splits "PATH[,PATH]" into paths, unless the whole is an existing path.

    Raises:
      UsageError: a path is empty, or names the home of an unknown user.
    """
    whole = expanded(source)
    parts = [source] if source and whole.exists() else source.split(",")
    if not all(part.strip() for part in parts):
        raise errors.UsageError(f"source {source!r}: give PATH[,PATH], none of them empty")
    return tuple(expanded(part.strip()) for part in parts)


def read_cases(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Case]:
    """Reads and checks every case of a source.

    Args:
      paths: JSONL files, Parquet files and folders, or one "PATH[,PATH]" string. A folder is a Hub
        snapshot (`data/{train,val,test}-*.parquet`), or holds such files or JSONL files directly.
        The split of a row is its `split` field, else the one in the name of its file. Columns
        beyond `FIELDS` are ignored, missing or null provenance becomes "", dates become ISO dates,
        and HTML entities are decoded once: "&lt;2" to "<2", "&amp;lt;" to "&lt;".

    Returns:
      The cases in the order of the source, with distinct fingerprints, each with a split.

    Raises:
      UsageError: a path does not exist or cannot be read as cases.
      McrError: rows are invalid or duplicates; names file, row (from 1; in JSONL the line) and
        field of up to 20 of them, one per line under a summary.
    """
    if isinstance(paths, str):
        paths = parse_source(paths)
    elif isinstance(paths, os.PathLike):
        paths = [paths]
    files = [file for path in paths for file in _files(pathlib.Path(path))]
    cases: list[Case] = []
    bad: list[str] = []
    seen: dict[str, tuple[str, str]] = {}
    for file in files:
        file_split = _split_of(file)
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)
        empty = True
        for where, fields, problem in rows:
            empty = False
            if fields is None:
                bad.append(f"{where}: {problem}")
                continue
            row = _as_fields(fields, file_split)
            if found := [f"{where}, field {name}: {what}" for name, what in _row_problems(row)]:
                bad.extend(found)
                continue
            case = Case(**row)
            if case.fingerprint in seen:
                bad.append(f"{where}: {_duplicate(case, *seen[case.fingerprint])}")
            else:
                seen[case.fingerprint] = (where, case.split)
                cases.append(case)
        if empty:
            split = f"split {file_split} of {file}" if file_split else str(file)
            bad.append(f"{split} holds no cases")
    if bad:
        raise errors.McrError(_report(bad, len(files)))
    return cases


def write_jsonl(cases: Iterable[Case], path: str | os.PathLike) -> None:
    """Writes cases as JSONL in UTF-8, one object per line; the write is atomic.

    Escapes text that looks like an HTML entity, so that `read_cases` returns the same cases.
    """
    with disk.atomic_write(pathlib.Path(path)) as file:
        for case in cases:
            row = {name: _escaped(value) for name, value in case.asdict().items()}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _escaped(value: str) -> str:
    """Replaces the "&" of text that `read_cases` would decode by "&amp;"."""
    return _ENTITY.sub(lambda entity: f"&amp;{entity[0][1:]}", value)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a source path."""
    if not path.exists():
        raise errors.UsageError(f"{path} does not exist: give a JSONL or Parquet file or a folder")
    if not path.is_dir():
        if path.suffix not in _SUFFIXES:
            raise errors.UsageError(f"{path} ends in none of {', '.join(_SUFFIXES)}")
        return [path]
    for folder in (path / "data", path):
        if files := sorted(f for f in folder.glob("*") if _SPLIT_FILE.match(f.name)):
            break
    else:
        raise errors.UsageError(
            f"{path} holds no train, val or test file in {' or '.join(_SUFFIXES)}, "
            "nor does its folder data/: name the files instead"
        )
    if len({file.suffix for file in files}) > 1:
        raise errors.UsageError(f"{folder} holds JSONL and Parquet files: name the ones to read")
    _require_all_shards(folder, files)
    return files


_SPLIT_FILE = re.compile(rf"({'|'.join(_SPLIT_NAMES)})([-_.].*)?\.(jsonl|parquet)$")
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)\.\w+$")


def _require_all_shards(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
    present = collections.defaultdict(set)
    for file in files:
        if match := _SHARD.match(file.name):
            present[match[1], int(match[3])].add(int(match[2]))
    for (name, total), numbers in present.items():
        if missing := set(range(total)) - numbers:
            raise errors.McrError(
                f"{folder} holds {len(numbers)} of {total} shards of {name} (shard "
                f"{min(missing)} is missing): complete the download"
            )


def _split_of(file: pathlib.Path) -> str:
    """Returns the split that a file's name contains as a word; "" without exactly one."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    named = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    return named.pop() if len(named) == 1 else ""


def _jsonl_rows(path: pathlib.Path) -> Iterator[_Row]:
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield _jsonl_row(f"{path}, row {number}", line)
    except OSError as error:
        yield _Row(str(path), None, f"cannot be read: {error.strerror}")


def _jsonl_row(where: str, line: bytes) -> _Row:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _Row(where, None, f"is not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return _Row(where, None, f"is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError):  # too many digits, nested too deeply
        return _Row(where, None, "is JSON beyond what can be read")
    if not isinstance(row, dict):
        return _Row(where, None, f"is a JSON {type(row).__name__}, not an object")
    return _Row(where, row)


def _parquet_rows(path: pathlib.Path) -> Iterator[_Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if missing := [name for name in CONTENT if name not in names]:
                problem = f"has no column {', '.join(missing)}; its columns: {names or 'none'}"
                yield _Row(str(path), None, problem)
                return
            number = 0
            columns = [name for name in FIELDS if name in names]
            for batch in table.iter_batches(batch_size=512, columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    yield _Row(where, row, "is not UTF-8" if row is None else "")
    except (pa.ArrowException, OSError) as error:
        reason = errors.one_line(str(error) or type(error).__name__, 200)
        yield _Row(str(path), None, f"is not a whole Parquet file: {reason}")


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a record batch; None for a row with a value that is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _as_fields(row: Mapping[str, Any], file_split: str) -> dict[str, Any]:
    """Converts a row to the fields of a case; invalid values stay as they are."""
    fields = {name: row[name] for name in FIELDS if name in row}
    for name in PROVENANCE:
        if fields.get(name) is None:
            fields[name] = ""
    if isinstance(date := fields["publication_date"], datetime.date):
        at_midnight = isinstance(date, datetime.datetime) and date.time() == datetime.time()
        fields["publication_date"] = (date.date() if at_midnight else date).isoformat()
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = _ENTITY.sub(_decoded, value)
    split = fields.get("split") or file_split
    fields["split"] = _SPLIT_NAMES.get(split, split) if isinstance(split, str) else split
    return fields


def _decoded(entity: re.Match[str]) -> str:
    """Decodes an entity; `html.unescape` alone would decode "&copyright;" as "&copy" and a word."""
    known = entity[0][1] == "#" or entity[0][1:] in html.entities.html5
    return html.unescape(entity[0]) if known else entity[0]


def _row_problems(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the problems of a row: missing content fields, a missing split, and `_problems`."""
    missing = [name for name in CONTENT if row.get(name) is None]
    yield from ((name, "is missing") for name in missing)
    yield from _problems({**row, **dict.fromkeys(missing, "-")})
    if row["split"] == "":
        hint = f"add it to the row, or name the file after its split ({', '.join(SPLITS)})"
        yield "split", f"is missing: {hint}"


def _duplicate(case: Case, where: str, split: str) -> str:
    leak = f", a leak from {split} into {case.split}" if split != case.split else ""
    return f"is the same case as {where}{leak}: keep one of them"


def _report(bad: Sequence[str], files: int) -> str:
    if len(bad) == 1:
        return bad[0]
    more = [f"... and {len(bad) - _MAX_REPORTED} more"] if len(bad) > _MAX_REPORTED else []
    noun = "file" if files == 1 else "files"
    summary = f"{len(bad)} problems in {files} {noun}, no case was taken:"
    return "\n".join((summary, *bad[:_MAX_REPORTED], *more))
