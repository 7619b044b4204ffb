"""Compares two judges on the completions that both judged, and carries accuracy over.

    mcr bridge --judges=FIRST,SECOND --workdir=DIR [--json=FILE]

Run `mcr judge` with each of them first. A judge is named as in the ledger, such as offline or
openai:gpt-4o-mini, or by its SPEC in config.judge.models. Without --judges it lists the judges of
the ledger. Nothing in the workdir changes.
"""

import json
from collections.abc import Sequence
from typing import Any

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened, written
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.paths import local_folder
from mcr_jax.workdir import write_text


def main(argv: Sequence[str]) -> None:
    """Runs `mcr bridge --judges=A,B --workdir=DIR`."""
    flags = Flags("bridge", __doc__)
    flags.experiment()
    flags.string("judges", "", "FIRST,SECOND: names or SPECs; the first is carried to")
    flags.string("json", "", "file that receives the numbers")
    if not flags.parse(argv):
        return
    text, path, out = (flags.values[name].value for name in ("judges", "workdir", "json"))
    judges = [name.strip() for name in text.split(",")]
    if text and (len(judges) != 2 or not all(judges) or judges[0] == judges[1]):
        raise UsageError("--judges=FIRST,SECOND takes two different judges")
    if out and not text:
        raise UsageError("--json=FILE takes --judges=FIRST,SECOND too")
    if path and not local_folder(path).is_dir():
        raise UsageError(f"--workdir={path}: there is no such folder")
    file = written("json", out) if out else None
    experiment = opened(flags, writes=False)
    if not text:
        show_judges(experiment)
        return
    found = run(experiment, (judges[0], judges[1]))
    if file:
        text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(file, text + "\n")


def show_judges(experiment: Experiment) -> None:
    """Prints the judges of the ledger, and the models that each judged. Raises McrError if none."""
    from mcr_jax.bridge import named
    from mcr_jax.generate.ledger import opened as ledger_opened

    with ledger_opened(experiment.workdir, readonly=True) as ledger:
        judges = named.judges(ledger)
    if not judges:
        raise McrError(f"{experiment.workdir.ledger}: no verdicts yet; run `mcr judge` first")
    for judge, by_stage in judges.items():
        judged = "; ".join(f"{stage} of {', '.join(of)}" for stage, of in by_stage.items())
        console.say(f"{judge}: {judged}")
    console.say("bridge: name two of them: --judges=FIRST,SECOND")


def run(experiment: Experiment, judges: tuple[str, str]) -> dict[str, Any]:
    """Prints the bridge from the first to the second judge and returns its numbers."""
    from rich.console import Console

    from mcr_jax.bridge.figures import bridge
    from mcr_jax.bridge.named import resolved
    from mcr_jax.bridge.shown import table
    from mcr_jax.generate.ledger import opened as ledger_opened

    with ledger_opened(experiment.workdir, readonly=True) as ledger:
        first, second = (resolved(judge, ledger, experiment.config) for judge in judges)
        if first == second:
            raise UsageError(f"--judges={','.join(judges)}: both are judge {first} of the ledger")
        found = bridge(ledger, (first, second), experiment.config)
    Console().print(table(found))
    return found
