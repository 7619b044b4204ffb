"""Compares models on the cases that all of them have: differences, exact tests, and a page.

    mcr compare WORKDIR[:MODEL] WORKDIR[:MODEL] ... [--out=FILE.html] [--json=FILE] [--anyway]

A workdir without :MODEL stands for all of its models. It reads results.json and scores.json and
changes nothing in the workdirs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import written
from mcr_jax.errors import McrError, UsageError


def main(argv: Sequence[str]) -> None:
    """Runs `mcr compare A[:MODEL] B[:MODEL] ...`."""
    flags = Flags("compare", __doc__)
    flags.take_operands()
    flags.string("out", "compare.html", "the page to write")
    flags.string("json", "", "file that receives the numbers")
    flags.boolean("anyway", "compare although judges, prompts, readings or splits differ")
    if not flags.parse(argv):
        return
    if not flags.operands:
        raise UsageError("name two models: mcr compare WORKDIR[:MODEL] WORKDIR[:MODEL]")
    out, numbers = (flags.values[name].value for name in ("out", "json"))
    if not out:
        raise UsageError("--out=FILE.html is empty")
    page, figures = written("out", out), numbers and written("json", numbers)
    run(flags.operands, page, figures, flags.values["anyway"].value)


def run(operands: Sequence[str], out: Path, numbers: Path | str, anyway: bool) -> dict[str, Any]:
    """Compares, prints a table, writes the page and the numbers; returns the numbers."""
    from rich.console import Console

    from mcr_jax.compare import chosen, forest, pairs, terminal
    from mcr_jax.workdir import write_text

    models = chosen.chosen(operands)
    lines = [
        chosen.described(name, values, models)
        for name, values in chosen.differences(models).items()
    ]
    if lines and not anyway:
        raise McrError(
            f"these workdirs differ in {'; '.join(lines)}. --anyway compares all the same"
        )
    for line in lines:
        console.say(f"compare: the workdirs differ in {line}")
    found = pairs.numbers(models)
    fictional = all(model.results["data"].get("synthetic") for model in models)
    html = forest.page(found, lines, _names(models), fictional=fictional)
    Console().print(terminal.table(found))
    if numbers:
        text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(Path(numbers), text + "\n")
        console.say(f"compare: {numbers}")
    write_text(out, html)
    console.say(f"compare: {out}")
    return found


def _names(models: Sequence[Any]) -> Mapping[str, tuple[str, str]]:
    """Returns id and diagnosis of the cases, from the first workdir whose dataset is at hand."""
    from mcr_jax import config as configs
    from mcr_jax.experiment.experiment import Experiment
    from mcr_jax.workdir import Workdir

    for folder in dict.fromkeys(model.folder for model in models):
        workdir = Workdir(folder, writes=False)
        try:
            config = configs.load(workdir.config)
            cases = Experiment(config, workdir).cases(config.data.eval_split)
        except McrError:  # made elsewhere: the cases are shown by their fingerprints
            continue
        return {
            case.fingerprint: (case.pmcid or case.fingerprint[:12], case.final_diagnosis.strip())
            for case in cases
        }
    return {}
