"""Runs `mcr COMMAND`; turns errors into one line and an exit status."""

import difflib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from mcr_jax import __version__
from mcr_jax.errors import McrError, Stopped, UsageError, for_terminal
from mcr_jax.sigterm import stoppable

_EXIT_STOPPED = 75  # exit status of a run that was stopped and can resume
_MEMORY_HEAVY = (
    "score",
    "report",
    "verify",
    "bridge",
)  # keep every row in memory, so garbage is rare
COMMANDS = {
    "demo": "all stages on fictional cases: no key, no network; ends with a report",
    "build": "prepare the TFDS dataset from JSONL, Parquet or a Hub snapshot folder",
    "stitch": "rewrite the numbered statements of each case as one fluent trace, audited",
    "train": "supervised fine-tuning",
    "eval": "sample, judge, score and report in one",
    "sample": "draw completions of every case",
    "judge": "judge the completions: diagnosis and reasoning recall",
    "score": "compute results.json from the ledger",
    "report": "write report.html, the page to read",
    "compare": "compare models of one or more workdirs on their common cases, with a page",
    "bridge": "compare two judges of the same completions; carry accuracy from one to the other",
    "export": "write a model as a Hugging Face folder, for transformers and vLLM",
    "export-completions": "write completions as JSONL, which file: reads",
    "export-log": "write completions and verdicts as a log that inspect_ai reads",
    "configs": "list the configs that --config=NAME takes",
    "launch": "run a command on TPU VMs and pods, GKE, Slurm, or as several processes",
    "status": "show what is wanted, answered and open, and what services were paid",
    "verify": "recompute every number of results.json from the ledger, offline",
    "doctor": "check devices, versions, keys, and how to get what is missing",
}


def usage() -> str:
    """Returns the text of `mcr --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"mcr {__version__}: build, fine-tune, sample and judge MedCaseReasoning in JAX.",
            "Research use, not for patient care.",
            "",
            "usage: mcr COMMAND [--config=NAME|FILE.py] [--config.a.b=VALUE] [--workdir=DIR] ...",
            "",
            *lines,
            "",
            "`mcr COMMAND --help` shows the flags of a command.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Runs `argv` (without the program's name).

    Returns the exit status: 0 done, 1 work failed, 2 invalid call, 75 stopped and resumable.
    """
    if not argv or argv[0] in ("help", "--help", "-h", "-help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, *rest = argv
    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else "`mcr --help` lists them"
            raise UsageError(f"no command {name!r}; {hint}")
        if name in _MEMORY_HEAVY:
            gc.set_threshold(100_000)  # objects between collections; saves a tenth of the time
        command = importlib.import_module(f"mcr_jax.cli.{name.replace('-', '_')}")
        with stoppable("stopped by SIGTERM; the same command goes on from here"):
            return command.main(rest) or 0
    except McrError as error:
        print(for_terminal(f"mcr {name}: {error}"), file=sys.stderr)
        if isinstance(error, Stopped):
            return _EXIT_STOPPED
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"mcr {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return _EXIT_STOPPED
    except BrokenPipeError:  # `mcr … | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    """Runs the console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    status = main(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would change the status while Python exits
    sys.exit(status)
