"""Metrics of training: a row {"step": …, name: value, …} in metrics.jsonl and in TensorBoard."""

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
    """Appends rows to the metrics of a run."""

    def __init__(self, path: Path | None, tensorboard: Path | None = None):
        """Opens no file yet.

        Args:
          path: of metrics.jsonl; None writes none, for all processes but the primary.
          tensorboard: folder of event files; None writes none.
        """
        self._path, self._tensorboard, self._events = path, tensorboard, None

    def go_on(self, step: int) -> None:
        """Removes rows after `step`, left by a killed run, and opens the event file.

        Raises:
          McrError: a file cannot be written.
        """
        if self._path is not None:
            kept = [line for line in _lines(self._path) if line["step"] <= step]
            write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in kept))
        if self._tensorboard is None:
            return
        try:
            self._tensorboard.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._tensorboard / "events"), f".from{step}")
            # Viewers drop a killed run's events after this one's step.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, session_log=start))
            self._events.flush()
        except OSError as error:
            raise McrError(f"{self._tensorboard}: cannot write: {error.strerror}") from error

    def write(self, step: int, **values: float) -> None:
        """Appends one row. Raises McrError if it cannot be written."""
        line = json.dumps({"step": step, **values})
        try:
            if self._path is not None:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            if self._events is not None:
                self._events.write_event(_event(step, values))
                self._events.flush()
        except OSError as error:
            raise McrError(f"{self._path}: cannot write metrics: {error.strerror}") from error

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # every row was flushed before
                self._events.close()


def _event(step: int, values: dict[str, float]) -> Event:
    tagged = [Summary.Value(tag=_tag(name), simple_value=x) for name, x in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=tagged))


def _tag(name: str) -> str:
    return f"val/{name[4:]}" if name.startswith("val_") else f"train/{name}"


def _lines(path: Path) -> list[dict[str, float]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise McrError(f"{path}: cannot read metrics: {error.strerror}") from error
    whole = []
    for text_line in text.splitlines():
        try:
            line = json.loads(text_line)
            line["step"] + 0
        except (ValueError, TypeError, KeyError):  # cut short by a kill
            break
        whole.append(line)
    return whole
