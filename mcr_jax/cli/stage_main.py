"""Opens the experiment that flags name, and runs a stage on it: the `main` of most commands."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcr_jax import console, model_specs
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir


def stage_main(
    command: str, about: str, argv: Sequence[str], run: Callable[[Experiment], Any] | None = None
) -> Any:
    """Runs a command whose only flags are --config and --workdir.

    Returns the result of `run`, by default of mcr_jax/COMMAND/stage.py; None after printing help.
    """
    flags = Flags(command, about)
    flags.experiment()
    if not flags.parse(argv):
        return None
    experiment = opened(flags)
    with experiment.working():
        run = run or importlib.import_module(f"mcr_jax.{command}.stage").run
        return run(experiment)


def opened(flags: Flags, judge: str = "", writes: bool = True) -> Experiment:
    """Returns the experiment that --config and --workdir name.

    Args:
      flags: parsed flags.
      judge: replaces config.judge.name and config.judge.models unless empty.
      writes: False in all but one of the processes that share the workdir.

    Raises:
      UsageError: a flag is wrong, or the workdir was made with another config.
    """
    console.show_log()
    path = flags.values["workdir"].value
    if not path:
        raise UsageError("--workdir=DIR is missing")
    if local_folder(path).exists():
        Workdir(path)  # raises if the workdir cannot be used, before the config is read
    config = flags.config()
    if judge:
        with config.unlocked():
            config.judge.name, config.judge.models = judge, ()
    return Experiment(config, Workdir(path, writes))


def written(flag: str, path: str) -> Path:
    """Returns the file that a flag names. Raises UsageError unless its folder is there."""
    place = local_folder(path)
    if place.is_dir():
        raise UsageError(f"--{flag}={path} is a folder; name a file")
    if not place.absolute().parent.is_dir():
        raise UsageError(f"--{flag}={path}: there is no folder {place.parent}")
    return place


def exported_model(experiment: Experiment, name: str) -> str:
    """Returns the model that --model names; without it, the only one of config.sample.models.

    Raises:
      UsageError: there is no such model, or `name` is empty and there are several.
    """
    names = model_specs.names(experiment.config)
    if name in names:
        return name
    if not name and len(names) == 1:
        return names[0]
    problem = f"--model={name}: no such model" if name else "--model=NAME is missing"
    raise UsageError(f"{problem}; config.sample.models names {', '.join(names)}")
