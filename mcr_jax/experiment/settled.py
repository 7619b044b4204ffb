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
from mcr_jax.model.model_names import NAMES
from mcr_jax.workdir import Workdir


def check(config: ConfigDict, workdir: Workdir) -> None:
    """Raises UsageError if results in the workdir rest on another value of a frozen field."""
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

    A first call that failed has left nothing but its config, and a better one replaces it.
    """
    there = {
        "results": lambda: has_results(workdir, checkpoints),
        "traces": lambda: _answers(workdir) > 0,  # of a model that is not yet trained
        "tokenizer": workdir.tokenizer.exists,
        "dataset": lambda: workdir.data.exists() or workdir.cases.exists(),
    }
    last = next((artifact for artifact, holds in there.items() if holds()), None)
    return () if last is None else FREEZING_ARTIFACTS[: FREEZING_ARTIFACTS.index(last) + 1]


def has_results(workdir: Workdir, checkpoints: str) -> bool:
    """Whether training saved a step or completions were sampled; `checkpoints` as configured."""
    there = newest_step(checkpoints or workdir.checkpoints) is not None
    return there or _was_sampled(workdir)


def _was_sampled(workdir: Workdir) -> bool:
    from mcr_jax.generate.ledger import Scope, opened

    if not workdir.ledger.exists():
        return False
    with opened(workdir, readonly=True) as ledger:
        return any(ledger.answers(Scope("sample", model)) for model in NAMES)


@contextlib.contextmanager
def working(config: ConfigDict, workdir: Workdir) -> Iterator[None]:
    """Holds the workdir against other writers, with this config recorded in it.

    A call that fails before it has made anything puts back the config and the manifest that were
    there before: a mistake in a config must not break every later call.
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
        except Stopped:  # called again it goes on
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
    """Returns what work was spent on in the workdir, with times of change in ns.

    Of the ledger it is the number of answers that this command wrote: opening it and declaring rows
    is no work.
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
    """Counts the rows of the ledger; of one that cannot be read, returns its time of change."""
    from mcr_jax.generate.ledger import opened

    if not workdir.ledger.exists():
        return 0
    try:
        with opened(workdir, readonly=True) as ledger:
            return ledger.count()
    except McrError:  # whoever needs it says so
        return workdir.ledger.stat().st_mtime_ns


def _text(path: Path) -> str | None:
    """Reads a file: None where there is none, "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def _put_back(workdir: Workdir, recorded: dict[str, Any] | None, noted: str | None) -> None:
    """Restores the config and the text of the manifest that a call found; None for none."""
    w = workdir
    with contextlib.suppress(McrError, OSError):  # what failed before this is to be told
        if noted:
            w.write_text(w.manifest, noted)
        elif noted is None and w.writes:
            w.manifest.unlink(missing_ok=True)
        if recorded is not None:
            w.write_json(w.config, recorded)
        elif w.writes:
            w.config.unlink()
