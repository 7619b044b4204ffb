"""metrics.jsonl: one JSON object a line, {"step": …, name: value, …}; survives kills."""

import json
from pathlib import Path

from mcr_jax.errors import McrError
from mcr_jax.workdir import write_text


class MetricsLog:
    """Appends lines; on opening, drops what a killed run wrote beyond the step it resumes from."""

    def __init__(self, path: Path, step: int):
        """Opens `path` to go on after `step`."""
        self._path = path
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, **values: float) -> None:
        """Adds one line. Raises McrError if it cannot be written."""
        line = json.dumps({"step": step, **values})
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise McrError(f"{self._path}: cannot write metrics: {error.strerror}") from error


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    whole = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            json.loads(line)
        except ValueError:  # the last line of a killed run may be cut short
            break
        whole.append(line)
    return whole
