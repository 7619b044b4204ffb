"""Runs a command by a launch script: on TPU VMs and pods, GKE, Slurm, or as local processes.

    mcr launch NAME [--FLAG=VALUE ...] -- COMMAND...

`mcr launch NAME --help` shows the flags of a script, --dry-run the commands that it would execute.
"""

import os
import shutil
import sys
from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli import _shipped
from mcr_jax.errors import McrError, UsageError

_HELP = ("--help", "-help", "-h")
_SBATCH = "slurm_gpu"  # submitted with sbatch; flags before -- are flags of sbatch
_OWN = (*_HELP, "--dry-run")  # flags that slurm_gpu.sbatch takes itself


def main(argv: Sequence[str]) -> None:
    """Runs `mcr launch NAME [FLAG...] -- COMMAND...`; the script replaces this process."""
    scripts = _shipped.scripts()
    if argv and argv[0] in _HELP:
        console.say(f"mcr launch: {__doc__.strip()}\n")
        width = max(map(len, scripts))
        for name, path in scripts.items():
            console.say(f"  {name:<{width}}  {_shipped.about(path)}")
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            f"which script? mcr launch NAME -- COMMAND; {_shipped.suggestion('', scripts)}"
        )
    call = command(argv[0], argv[1:])
    if shutil.which(call[0]) is None:
        where = ": call this on a Slurm cluster" if call[0] == "sbatch" else ""
        raise McrError(f"{call[0]} is not installed or not on PATH{where}")
    os.execvpe(call[0], call, {**os.environ, "MCR_PYTHON": sys.executable})


def command(name: str, argv: Sequence[str]) -> list[str]:
    """Returns the command line that runs a launch script.

    Args:
      name: name of the script.
      argv: flags of the script, `--`, and the command to run.

    Raises:
      UsageError: the name is unknown, or the command for Slurm is missing.
    """
    scripts = _shipped.scripts()
    if name not in scripts:
        raise UsageError(f"no launch script {name!r}; {_shipped.suggestion(name, scripts)}")
    script = str(scripts[name])
    if name != _SBATCH or any(flag in _OWN for flag in _flags(argv)):
        return ["bash", script, *argv]
    flags = _flags(argv)
    job = list(argv[len(flags) + 1 :])
    if not job:
        raise UsageError("no command to run: it comes last, after --")
    return ["sbatch", *flags, script, *job]


def _flags(argv: Sequence[str]) -> list[str]:
    """Returns the arguments before the first `--`."""
    argv = list(argv)
    return argv[: argv.index("--")] if "--" in argv else argv
