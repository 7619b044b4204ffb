"""Protection of a workdir: frozen config fields, its lock, and the inputs of training."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts
from mcr_jax import config as configs
from mcr_jax.config_fields import FIELDS, FREEZING_ARTIFACTS
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.model_specs import OWN
from mcr_jax.workdir import Workdir


def check(config: ConfigDict, workdir: Workdir) -> None:
    """Raises UsageError if artifacts in the workdir were made with another frozen field."""
    if not workdir.config.exists():
        return
    recorded = configs.load(workdir.config)
    before, made = configs.frozen(recorded), None
    for field, value in configs.frozen(config).items():
        if before[field] == value:
            continue
        if made is None:
            made = _freezing(workdir, recorded.train.checkpoints)
        if FIELDS[field].frozen in made:
            raise UsageError(
                f"{workdir.path} was made with {field}={before[field]!r}, this call "
                f"says {value!r}: use another --workdir"
            )


def _freezing(workdir: Workdir, checkpoints: str) -> tuple[str, ...]:
    """Returns the last of FREEZING_ARTIFACTS that the workdir holds, and those before it.

    A first call that failed leaves only its config, which the next call may replace.
    """
    there = {
        "results": lambda: has_results(workdir, checkpoints),
        "traces": lambda: _answers(workdir) > 0,  # answers before any training
        "tokenizer": workdir.tokenizer.exists,
        "dataset": lambda: workdir.data.exists() or workdir.cases.exists(),
    }
    last = next((artifact for artifact, holds in there.items() if holds()), None)
    return () if last is None else FREEZING_ARTIFACTS[: FREEZING_ARTIFACTS.index(last) + 1]


def has_results(workdir: Workdir, checkpoints: str) -> bool:
    """Returns whether training saved a step or completions were sampled.

    `checkpoints` is config.train.checkpoints.
    """
    there = newest_step(checkpoints or workdir.checkpoints) is not None
    return there or _was_sampled(workdir)


def _was_sampled(workdir: Workdir) -> bool:
    from mcr_jax.generate.ledger import Scope, opened

    if not workdir.ledger.exists():
        return False
    with opened(workdir, readonly=True) as ledger:
        return any(ledger.answers(Scope("sample", model)) for model in OWN)


@contextlib.contextmanager
def working(config: ConfigDict, workdir: Workdir) -> Iterator[None]:
    """Holds the workdir against other writers, with this config recorded in it.

    A call that fails before it has made anything restores the previous config and manifest: a
    mistake in a config must not break every later call.
    """
    with workdir.locked():
        check(config, workdir)  # another mcr may have been first
        path, plain = workdir.config, json.loads(config.to_json())
        recorded = workdir.read_json(path) if path.exists() else None
        noted = _text(workdir.manifest)
        if recorded != plain:
            workdir.write_json(path, plain)
        before = _work(workdir)
        try:
            yield
        except Stopped:  # the next call resumes
            raise
        except McrError:
            if recorded != plain and _work(workdir) == before:
                _put_back(workdir, recorded, noted)
            raise


def refuse_other(config: ConfigDict, workdir: Workdir, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the manifest holds of training.

    Raises:
      UsageError: training was with other `inputs`, and has saved a step or was sampled from.
    """
    before = artifacts.section(workdir, "train")
    for name, value in inputs.items():
        if name in before and before[name] != value:
            if not has_results(workdir, config.train.checkpoints):
                return {}
            other = "other" if name == "traces" else "another"
            raise UsageError(
                f"{workdir.path} was trained with {other} {name} "
                f"({str(before[name])[:12]}, now {str(value)[:12]}): put it back or use "
                "another --workdir"
            )
    return before


def _work(workdir: Workdir) -> dict[str, int]:
    """Returns modification times in ns of the artifacts that took work, by name.

    For the ledger it is the number of answers that this command wrote: opening it and declaring
    rows is no work.
    """
    w, ledger = workdir, (workdir.kept or {}).get("ledger")
    made = {"answers": ledger.written if ledger else 0}
    unspent = (w.config, w.manifest, w.tokens)  # tokens are a cache
    for path in w.path.iterdir():
        if path in unspent or path.name.startswith((".", w.ledger.name)):
            continue
        with contextlib.suppress(FileNotFoundError):
            made[path.name] = path.stat().st_mtime_ns
    return made


def _answers(workdir: Workdir) -> int:
    """Counts the rows of the ledger; returns the modification time of one that is unreadable."""
    from mcr_jax.generate.ledger import opened

    if not workdir.ledger.exists():
        return 0
    try:
        with opened(workdir, readonly=True) as ledger:
            return ledger.count()
    except McrError:  # the stage that reads it reports the fault
        return workdir.ledger.stat().st_mtime_ns


def _text(path: Path) -> str | None:
    """Reads a file: None if it is missing, "" if it is unreadable."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def _put_back(workdir: Workdir, recorded: dict[str, Any] | None, noted: str | None) -> None:
    """Restores config and manifest text; None removes the file."""
    w = workdir
    with contextlib.suppress(McrError, OSError):  # the caller reports the first error
        if noted:
            w.write_text(w.manifest, noted)
        elif noted is None and w.writes:
            w.manifest.unlink(missing_ok=True)
        if recorded is not None:
            w.write_json(w.config, recorded)
        elif w.writes:
            w.config.unlink()
