"""Compares two judges on the completions that both judged, and carries accuracy over.

    mcr bridge --judges=FIRST,SECOND --workdir=DIR [--json=FILE]

Judges are named as in the ledger, such as offline or openai:gpt-4o-mini. Run `mcr judge` with each
of them first. Nothing in the workdir changes.
"""

import json
from collections.abc import Sequence
from typing import Any

from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened, written
from mcr_jax.errors import UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.paths import local_folder
from mcr_jax.workdir import write_text


def main(argv: Sequence[str]) -> None:
    """Runs `mcr bridge --judges=A,B --workdir=DIR`."""
    flags = Flags("bridge", __doc__)
    flags.experiment()
    flags.string("judges", "", "FIRST,SECOND: names in the ledger; the first is carried to")
    flags.string("json", "", "file that receives the numbers")
    if not flags.parse(argv):
        return
    judges = [name.strip() for name in flags.values["judges"].value.split(",")]
    if len(judges) != 2 or not all(judges) or judges[0] == judges[1]:
        raise UsageError("--judges=FIRST,SECOND takes two different judges")
    path = flags.values["workdir"].value
    if path and not local_folder(path).is_dir():
        raise UsageError(f"--workdir={path}: there is no such folder")
    out = flags.values["json"].value
    file = written("json", out) if out else None
    found = run(opened(flags, writes=False), (judges[0], judges[1]))
    if file:
        text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(file, text + "\n")


def run(experiment: Experiment, judges: tuple[str, str]) -> dict[str, Any]:
    """Prints the bridge from the first to the second judge and returns its numbers."""
    from rich.console import Console

    from mcr_jax.bridge.figures import bridge
    from mcr_jax.bridge.shown import table
    from mcr_jax.generate.ledger import opened as ledger_opened

    with ledger_opened(experiment.workdir, readonly=True) as ledger:
        found = bridge(ledger, judges, experiment.config)
    Console().print(table(found))
    return found
