"""Process that runs chat templates with limited memory and time.

One process serves all templates. It starts with the first one, is replaced when a template exceeds
a limit, and ends with this process, because its socket is closed then.
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
LONGEST_REPLY = 1 << 27  # bytes; 16 million characters, at most 6 bytes of JSON each
_PROGRAM = Path(__file__).with_name("template_worker.py").absolute()
# Runs without site-packages, .pth files and PYTHON* variables; jinja2 is found as here.
_START = """\
import runpy, sys
sys.path += sys.argv.pop().split("\\n")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one compilation or rendering of a template.

    Real templates need about 50 microseconds and little memory.

    Attributes:
      memory_mb: address space beyond that of the program, in 2**20 bytes; macOS enforces none.
      processor_s: processor time, which does not depend on the load of the machine.
      wall_s: time from the request to the reply, for waits that need no processor.
    """

    memory_mb: int = 512
    processor_s: float = 10.0
    wall_s: float = 120.0


class TemplateProcess:
    """Compiles and renders templates in another process, one at a time.

    Threads may share it; a fork starts its own process.
    """

    def __init__(self, limits: Limits | None = None):
        """Starts no process yet."""
        self._limits = limits or Limits()
        self._lock = threading.RLock()
        self._running: _Running | None = None

    @property
    def pid(self) -> int | None:
        """Returns the process id; None without a process."""
        return self._running and self._running.process.pid

    def compile(self, template: Mapping[str, Any]) -> tuple[str, ...]:
        """Compiles a template: its "key", "source", "variables" and time "now".

        Returns:
          Its literal texts.

        Raises:
          McrError: it is not a template, or exceeds a limit.
        """
        return tuple(self._ask(template)["literals"])

    def render(
        self, template: Mapping[str, Any], messages: list[dict[str, str]], prompt: bool
    ) -> str:
        """Renders `messages`, with the generation prompt if `prompt`.

        Raises:
          McrError: the template fails or exceeds a limit.
        """
        request = {"key": template["key"], "messages": messages, "prompt": prompt}
        with self._lock:
            reply = self._ask(request)
            if "missing" in reply:  # a new process, or it dropped the template
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
            except _EndedError:  # maybe killed from outside
                reply = self._exchange(body)
        if "error" in reply:
            raise McrError(reply["error"])
        return reply

    def _exchange(self, body: bytes) -> dict[str, Any]:
        """Sends a request and returns its reply. Raises McrError."""
        if self._running and self._running.owner != os.getpid():  # it is the parent's of a fork
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
            if not answered:  # a late reply would be read as the next one
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
    """The process ended without reaching a limit."""


class _Running:
    """Started process and its socket."""

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
          TimeoutError: the deadline, of `time.monotonic`, is over.
          EOFError, ConnectionError: the process ended.
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
