"""metrics.jsonl: one JSON object a line, {"step": …, name: value, …}; survives kills.

The same values go to TensorBoard's event files.
"""

import contextlib
import json
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mcr_jax.errors import McrError
from mcr_jax.workdir import write_text


class MetricsLog:
    """What a run has measured so far, and what it goes on to measure."""

    def __init__(self, path: Path | None, tensorboard: Path | None = None):
        """Reads what there is; writes nothing yet.

        Args:
          path: of metrics.jsonl; None keeps the values in memory alone, for all processes of a run
            but the one that writes.
          tensorboard: folder of event files; None writes none.
        """
        self._path, self._tensorboard, self._events = path, tensorboard, None
        self._lines = _lines(path) if path else []

    def history(self, name: str, until: int) -> list[float]:
        """The values of `name` up to step `until`, in order."""
        return [line[name] for line in self._lines if name in line and line["step"] <= until]

    def go_on(self, step: int) -> None:
        """Drops what a killed run wrote beyond `step` and opens the files to go on after it.

        Raises:
          McrError: they cannot be written.
        """
        self._lines = [line for line in self._lines if line["step"] <= step]
        if self._path is not None:
            write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in self._lines))
        if self._tensorboard is None:
            return
        try:
            self._tensorboard.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._tensorboard / "events"), f".from{step}")
            # Viewers drop from here on what a killed run wrote before.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, session_log=start))
            self._events.flush()
        except OSError as error:
            raise McrError(f"{self._tensorboard}: cannot write: {error.strerror}") from error

    def write(self, step: int, **values: float) -> None:
        """Adds one line. Raises McrError if it cannot be written."""
        line = {"step": step, **values}
        self._lines.append(line)
        try:
            if self._path is not None:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            if self._events is not None:
                self._events.write_event(_event(step, values))
                self._events.flush()
        except OSError as error:
            raise McrError(f"{self._path}: cannot write metrics: {error.strerror}") from error

    def close(self) -> None:
        """Lets go of the event file."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # all that matters was flushed as it was written
                self._events.close()


def _event(step: int, values: dict[str, float]) -> Event:
    told = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=told))


def _tag(name: str) -> str:
    return f"val/{name[4:]}" if name.startswith("val_") else f"train/{name}"


def _lines(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    whole = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            whole.append(json.loads(line))
        except ValueError:  # the last line of a killed run may be cut short
            break
    return whole
