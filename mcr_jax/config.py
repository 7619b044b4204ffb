"""The configuration: built from the records of config_fields.py, checked, read from a workdir.

A config file is Python with a `get_config()` that changes fields of `default()`. Values are plain
data. `check` refuses unknown fields, so a typo is an error.
"""

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import judge_specs
from mcr_jax.config_fields import FIELDS
from mcr_jax.errors import McrError, UsageError


def default() -> ConfigDict:
    """Returns the default config; every stage reads its own section and `seed`."""
    plain: dict[str, Any] = {}
    for name, field in FIELDS.items():
        section, _, last = name.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[last] = field.default
    return ConfigDict(plain)


def check(config: ConfigDict, origin: str) -> ConfigDict:
    """Returns `default()` overlaid with `config`, locked.

    Raises:
      UsageError: `config` has a field that `default()` lacks, or a value of another type or out of
        range. `origin` names the file in the message.
    """
    resolved = default()
    _overlay(resolved, config, origin, "")
    for name, value in fields(resolved):
        if not FIELDS[name].accepts(value):
            raise UsageError(
                f"{origin}: config field {name} is {FIELDS[name].allowed}, not {value!r}"
            )
    if resolved.model.folder:
        resolved.model.folder = os.path.normpath(resolved.model.folder)
    return resolved.lock()


def judge_name(config: ConfigDict, name: str = "") -> str:
    """Returns a judge's name in the ledger: that of the first judge, or of the kind `name`.

    Raises UsageError if config.judge.models is wrong.
    """
    if not name:
        return judge_specs.headline(config).name
    return judge_specs.plain_name(name, config.judge.model)


def sampling_dtype(config: ConfigDict) -> str:
    """Returns the dtype of weights in sampling.

    config.sample.dtype; if empty, bfloat16 for bfloat16 parameters, else config.train.compute.
    """
    if config.sample.dtype:
        return config.sample.dtype
    return "bfloat16" if config.model.dtype == "bfloat16" else config.train.compute


def load(path: Path) -> ConfigDict:
    """Reads the config recorded in a workdir. Raises McrError if the file is broken."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"), object_hook=_tuples)
    except (OSError, ValueError) as error:
        raise McrError(f"{path}: unreadable: {error}") from error
    except RecursionError as error:
        raise McrError(f"{path}: unreadable: nested too deeply") from error
    if not isinstance(recorded, dict):
        raise McrError(f"{path}: unreadable: not a JSON object")
    return check(ConfigDict(recorded), str(path))


def frozen(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that an artifact of the workdir freezes, by dotted name."""
    return {name: value for name, value in fields(config) if FIELDS[name].frozen}


def identity(config: ConfigDict) -> dict[str, Any]:
    """Returns the frozen fields that identify a training run by their value.

    File names differ between machines: the caller adds digests of the files instead.
    """
    return {n: value for n, value in frozen(config).items() if not FIELDS[n].by_content}


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_field(name: str) -> None:
    """Raises UsageError unless `name` is the dotted name of a field."""
    if name not in FIELDS:
        close = difflib.get_close_matches(name, FIELDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown config field {name}{hint}")


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def _overlay(target: ConfigDict, source: ConfigDict, origin: str, prefix: str) -> None:
    for field, value in source.items():
        name = prefix + field
        if field not in target:
            close = difflib.get_close_matches(field, list(target.keys()), 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UsageError(f"{origin}: unknown config field {name}{hint}")
        if isinstance(target[field], ConfigDict) != isinstance(value, ConfigDict):
            raise UsageError(
                f"{origin}: config field {name} is a section or a value, not the other"
            )
        if isinstance(value, ConfigDict):
            _overlay(target[field], value, origin, name + ".")
            continue
        try:
            if value is None or isinstance(value, bool) != isinstance(target[field], bool):
                raise TypeError  # ConfigDict takes None for anything and True for 1
            if isinstance(value, tuple | list) and not all(isinstance(v, str) for v in value):
                raise TypeError  # all tuples are of texts
            target[field] = value
        except TypeError as error:
            raise UsageError(
                f"{origin}: config field {name} takes {type(target[field]).__name__}, not {value!r}"
            ) from error
