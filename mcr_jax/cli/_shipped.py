"""Finds the installed configs and launch scripts by name.

`--config=sft_qwen2_5_7b:lora` names a shipped config; in a checkout, a path to its file works too.
"""

import ast
import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

_PARTS = ("lib", "on_vm", "pack", "tpu")  # files of launch/ that its scripts use


def configs() -> dict[str, Path]:
    """Returns the files of the shipped configs, by name."""
    files = sorted(_folder("configs").glob("[!_]*.py"))
    return {path.stem: path for path in files}


def scripts() -> dict[str, Path]:
    """Returns the files of the launch scripts, by name."""
    files = sorted(
        file for kind in ("sh", "sbatch") for file in _folder("launch").glob(f"*.{kind}")
    )
    return {file.stem: file for file in files if file.stem not in _PARTS}


def config_file(given: str) -> str:
    """Converts NAME[:ARG] of a shipped config to FILE.py[:ARG], unless a file is called NAME."""
    name, colon, arg = given.partition(":")
    if Path(name).is_file() or name not in configs():
        return given
    return f"{configs()[name]}{colon}{arg}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns the closest known name, if any, and the list of all names, as a hint."""
    known, stem = list(known), Path(name).stem
    close = [stem] if stem in known else difflib.get_close_matches(stem, known, 1)
    listed = f"shipped are {', '.join(known)}"
    return f"did you mean {close[0]}? {listed}" if close else listed


def about(file: Path) -> str:
    """Returns the first line of a config's docstring or of a script's comment."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return text.splitlines()[1].removeprefix("# ")


def _folder(name: str) -> Path:
    return Path(str(resources.files(f"mcr_jax.{name}")))
