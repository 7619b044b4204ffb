"""The process that chat templates run in: a template cannot use all memory, nor run for ever.

One process serves all templates. It starts with the first one, is ended and replaced when a
template breaks a limit, and ends with this process, however that ends: its socket is closed then.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError

OUT_OF_MEMORY = 3  # exit status, as in template_worker
LONGEST_REPLY = 1 << 27  # bytes; 16 million characters of JSON have at most 6 each
_PROGRAM = Path(__file__).with_name("template_worker.py").absolute()
# Started without site-packages, .pth files and PYTHON* variables; finds jinja2 where we do.
_START = """\
import runpy, sys
sys.path += sys.argv.pop().split("\\n")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one compilation or rendering of a template.

    Real ones take about 50 microseconds and no memory to speak of.

    Attributes:
      memory_mb: address space beyond that of the program, in 2**20 bytes; macOS enforces none.
      processor_s: processor time, so that a busy machine fails no honest template.
      wall_s: time from the request to the reply, for what processor time does not bound.
    """

    memory_mb: int = 512
    processor_s: float = 10.0
    wall_s: float = 120.0


class TemplateProcess:
    """Compiles and renders templates in a process of its own, one at a time.

    Threads may share it, and a fork starts its own process.
    """

    def __init__(self, limits: Limits | None = None):
        """Starts nothing yet. `limits` are the default ones unless given."""
        self._limits = limits or Limits()
        self._lock = threading.RLock()
        self._running: _Running | None = None

    @property
    def pid(self) -> int | None:
        """Process id while there is a process, else None."""
        return self._running and self._running.process.pid

    def compile(self, template: Mapping[str, Any]) -> tuple[str, ...]:
        """Compiles a template: its "key", "source", "variables" and time "now".

        Returns:
          The texts that are written in it.

        Raises:
          McrError: it is not a template, or breaks a limit.
        """
        return tuple(self._ask(template)["literals"])

    def render(
        self, template: Mapping[str, Any], messages: list[dict[str, str]], prompt: bool
    ) -> str:
        """The text of `messages`, with the generation prompt if `prompt`.

        Raises:
          McrError: the template fails or breaks a limit.
        """
        request = {"key": template["key"], "messages": messages, "prompt": prompt}
        with self._lock:
            reply = self._ask(request)
            if "missing" in reply:  # the process is new, or has held too many others since
                self._ask(template)
                reply = self._ask(request)
        return reply["text"]

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        with self._lock:
            if self._running:
                self._running.end()
            self._running = None

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            try:
                reply = self._exchange(body)
            except _EndedError:  # perhaps from outside, before it saw the request
                reply = self._exchange(body)
        if "error" in reply:
            raise McrError(reply["error"])
        return reply

    def _exchange(self, body: bytes) -> dict[str, Any]:
        """Sends a request and returns its reply. Raises McrError at a limit."""
        if self._running and self._running.owner != os.getpid():  # that of this fork's parent
            self._running = None
        self._running = self._running or _Running(self._limits)
        answered = False
        try:
            reply = self._running.exchange(body, time.monotonic() + self._limits.wall_s)
            answered = True
        except TimeoutError as error:
            raise McrError(f"it takes more than {self._limits.wall_s:g} seconds") from error
        except (EOFError, ConnectionError) as error:
            raise self._ended(self._running.process.wait()) from error
        finally:
            if not answered:  # a late reply would be taken for that to the next request
                self.close()
        return json.loads(reply)

    def _ended(self, status: int) -> McrError:
        if status == OUT_OF_MEMORY:
            return McrError(f"it takes more than {self._limits.memory_mb} MB of memory")
        if status == -signal.SIGPROF:
            seconds = f"{self._limits.processor_s:g} seconds"
            return McrError(f"it takes more than {seconds} of processor time")
        return _EndedError(f"its process ended with status {status}")


class _EndedError(McrError):
    """The process ended, and at none of its limits."""


class _Running:
    """A process that has been started, and the socket to it."""

    def __init__(self, limits: Limits):
        needed = ("jinja2", "markupsafe")
        found = (importlib.util.find_spec(name).submodule_search_locations[0] for name in needed)
        paths = "\n".join(dict.fromkeys(os.path.dirname(path) for path in found))
        bounds = (str(limits.memory_mb << 20), str(limits.processor_s))
        self.owner = os.getpid()
        self.socket, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-ISc", _START, str(_PROGRAM), *bounds, paths],
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self.socket.close()
                raise McrError(f"cannot start {sys.executable}: {error.strerror}") from error
        self.end = weakref.finalize(self, _end, self.socket, self.process, self.owner)

    def exchange(self, body: bytes, deadline: float) -> bytearray:
        """Sends a request and receives its reply.

        Raises:
          TimeoutError: the deadline, of `time.monotonic`, has passed.
          EOFError, ConnectionError: the process has ended.
        """
        self._wait_until(deadline)
        self.socket.sendall(struct.pack(">I", len(body)) + body)
        (size,) = struct.unpack(">I", self._receive(4, deadline))
        if size > LONGEST_REPLY:
            raise McrError(f"its process replied with {size} bytes")
        return self._receive(size, deadline)

    def _receive(self, size: int, deadline: float) -> bytearray:
        received = bytearray()
        while len(received) < size:
            self._wait_until(deadline)
            part = self.socket.recv(min(size - len(received), 1 << 20))
            if not part:
                raise EOFError
            received += part
        return received

    def _wait_until(self, deadline: float) -> None:
        self.socket.settimeout(max(deadline - time.monotonic(), 1e-3))


def _end(connection: socket.socket, process: subprocess.Popen, owner: int) -> None:
    connection.close()
    if owner == os.getpid():
        process.kill()
        process.wait()


SHARED = TemplateProcess()  # of this process
