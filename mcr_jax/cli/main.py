"""`mcr COMMAND`: finds the command, runs it, and turns failure into one line and an exit status."""

import difflib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from mcr_jax import __version__
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.sigterm import stoppable

_STOPPED = 75  # the status of work that was stopped and is to be called again
_KEEPING = ("score", "report", "verify")  # hold every row: looking for garbage there is in vain
COMMANDS = {
    "demo": "the whole way on fictional cases: no key, no network; ends with a report",
    "build": "prepare the TFDS dataset from JSONL, Parquet or a Hub snapshot folder",
    "stitch": "one fluent trace per case out of the numbered statements, audited",
    "train": "supervised fine-tuning",
    "eval": "sample, judge, score and report in one",
    "sample": "draw completions of every case",
    "judge": "judge the completions: diagnosis and reasoning recall",
    "score": "results.json from the ledger",
    "report": "report.html, the page a person reads",
    "export": "a model as a Hugging Face folder, for transformers and vLLM",
    "configs": "the configs that --config=NAME takes, one line each",
    "launch": "run a command on TPU VMs and pods, GKE, Slurm, or as several processes",
    "verify": "recompute every number of results.json from the ledger, offline",
    "doctor": "devices, versions, keys present, what is missing and how to get it",
}


def usage() -> str:
    """The text of `mcr --help`."""
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
            "`mcr COMMAND --help` tells a command's flags.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Runs `argv` (without the program's name).

    Returns the exit status: 0 done, 1 work failed, 2 call wrong, 75 stopped and to be called again.
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
        if name in _KEEPING:
            gc.set_threshold(100_000)  # new objects before a search; a tenth of the time was search
        command = importlib.import_module(f"mcr_jax.cli.{name}")
        with stoppable("stopped by SIGTERM; the same command goes on from here"):
            return command.main(rest) or 0
    except UsageError as error:
        print(f"mcr {name}: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"mcr {name}: {error}", file=sys.stderr)
        return _STOPPED
    except McrError as error:
        print(f"mcr {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mcr {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `mcr … | head`: the reader has gone, not a fault of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    """The console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    status = main(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while Python exits it would change the status
    sys.exit(status)
