"""Whether a call has made anything in a workdir, and what is put back where it has not."""

import contextlib
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.workdir import Workdir


def work(workdir: Workdir) -> dict[str, int]:
    """What stands in the workdir that work was spent on, and when it last changed, in ns.

    Of the ledger, how many answers it holds: opening it and stating what is wanted is no work.
    """
    w, made = workdir, {"answers": answers(workdir)}
    unspent = (w.config, w.manifest, w.tokens)  # tokens are a cache
    for path in w.path.iterdir():
        if path in unspent or path.name.startswith((".", w.ledger.name)):
            continue
        with contextlib.suppress(FileNotFoundError):
            made[path.name] = path.stat().st_mtime_ns
    return made


def answers(workdir: Workdir) -> int:
    """The rows of the ledger; of one that cannot be read, when it last changed."""
    from mcr_jax.generate.ledger import Ledger

    if not workdir.ledger.exists():
        return 0
    try:
        with Ledger(workdir.ledger, readonly=True) as ledger:
            return ledger.count()
    except McrError:  # whoever needs it says so
        return workdir.ledger.stat().st_mtime_ns


def text(path: Path) -> str | None:
    """What a file holds: None where there is none, "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def put_back(workdir: Workdir, recorded: dict[str, Any] | None, noted: str | None) -> None:
    """Puts back the config and the manifest's text that a call found; None for none."""
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
