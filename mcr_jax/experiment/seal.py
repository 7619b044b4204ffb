"""Seals on finished work: a command that finds its seal unchanged has nothing to do."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcr_jax import artifacts, model_specs, prompts
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir, digest

if TYPE_CHECKING:
    from mcr_jax.experiment.experiment import Experiment


def finished(experiment: "Experiment", what: str) -> bool:
    """Returns whether `finish(what)` was called and its inputs are unchanged since."""
    sealed = artifacts.section(experiment.workdir, what)
    if not sealed or sealed != {**sealed, **_facts(experiment)}:
        return False  # without opening the ledger: the command will open it for writing
    return sealed.get("ledger_rows") == _ledger_rows(experiment.workdir)


def finish(experiment: "Experiment", what: str) -> None:
    """Records in the manifest that all of `what` is done."""
    rows = {"ledger_rows": _ledger_rows(experiment.workdir)}
    experiment.workdir.note(what, {**_facts(experiment), **rows})


def _facts(e: "Experiment") -> dict[str, Any]:
    from mcr_jax.data.dataset import MissingDatasetError, dataset_fingerprint

    w, folder, dataset = e.workdir, e.config.model.folder, None
    with contextlib.suppress(MissingDatasetError):
        dataset = dataset_fingerprint(e.data_dir)
    return {
        "config": digest(json.loads(e.config.to_json())),
        "prompts": {name: prompts.load(name, e.config.prompts).digest for name in prompts.names()},
        "dataset": dataset,
        "model.folder": e.folder_digest() if folder and local_folder(folder).is_dir() else "",
        **({"candidates": found} if (found := _candidates(e)) else {}),
        "step": newest_step(e.checkpoints),
        **{path.name: _file_digest(path) for path in (w.results, w.report)},
    }


def _candidates(e: "Experiment") -> dict[str, str | None]:
    """Returns digests of the folders and files that candidates are read from, by name."""
    found = {}
    for spec in model_specs.specs(e.config):
        if spec.kind == model_specs.FOLDER and local_folder(spec.value).is_dir():
            found[spec.name] = e.of_folder(spec.value).folder_digest()
        elif spec.kind == model_specs.FILE:
            found[spec.name] = _file_digest(local_folder(spec.value))
    return found


def _ledger_rows(workdir: Workdir) -> int:
    from mcr_jax.generate.ledger import opened

    if not workdir.ledger.exists():
        return 0
    with opened(workdir, readonly=True) as ledger:
        return ledger.count()


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
