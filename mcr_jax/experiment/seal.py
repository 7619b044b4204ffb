"""Seals on finished work: a command that finds nothing changed since has nothing to do."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcr_jax import artifacts, prompts
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.paths import local_folder
from mcr_jax.workdir import digest

if TYPE_CHECKING:
    from mcr_jax.experiment.experiment import Experiment


def finished(experiment: "Experiment", what: str) -> bool:
    """Whether `finish(what)` was called and nothing it rests on has changed since."""
    sealed = artifacts.section(experiment.workdir, what)
    return bool(sealed) and sealed == _seal(experiment)


def finish(experiment: "Experiment", what: str) -> None:
    """Records that all of `what` is done."""
    experiment.workdir.note(what, _seal(experiment))


def _seal(e: "Experiment") -> dict[str, Any]:
    from mcr_jax.data.dataset import MissingDatasetError, dataset_fingerprint
    from mcr_jax.generate.ledger import Ledger

    w, rows, dataset = e.workdir, 0, None
    folder = e.config.model.folder
    with contextlib.suppress(MissingDatasetError):
        dataset = dataset_fingerprint(e.data_dir)
    if w.ledger.exists():
        with Ledger(w.ledger, readonly=True) as ledger:
            rows = ledger.count()
    return {
        "config": digest(json.loads(e.config.to_json())),
        "prompts": {name: prompts.load(name, e.config.prompts).digest for name in prompts.names()},
        "dataset": dataset,
        "model.folder": e.folder_digest() if folder and local_folder(folder).is_dir() else "",
        "step": newest_step(e.checkpoints),
        "ledger_rows": rows,
        **{path.name: _file_digest(path) for path in (w.results, w.report)},
    }


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
