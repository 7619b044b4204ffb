"""Program that compiles and renders chat templates in another process.

`template_process` starts it by its path and never imports it; it imports only jinja2 and the
standard library. Requests and replies go through file descriptor 0, a socket: each is a length in 4
bytes, big-endian, and that many bytes of JSON. The program ends when the socket is closed, when the
time of a request is over (the kernel sends SIGPROF), or with the status `OUT_OF_MEMORY`.

Templates come with downloaded weights and are untrusted code: they can read only their variables.
"""

import contextlib
import datetime
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT_OF_MEMORY = 3  # exit status
LONGEST_OUTPUT = 1 << 24  # characters of a rendered conversation, or items of a repeated sequence
LONGEST_ERROR = 1000  # characters of a template's message
CACHED_TEMPLATES = 16  # newest compiled ones

_FAILURES = (
    *(TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)


class _Environment(ImmutableSandboxedEnvironment):
    """Sandbox that also bounds products; jinja2 bounds ranges."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context, operator, left, right):
        if operator == "**":
            raise SecurityError("powers are not for templates")
        for value, times in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(times, int):
                _bound(len(value) * times)
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """Tag `{% generation %}` around the assistant's text: renders its body."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Namespace without names that start with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} is no name for a namespace's attribute")
        super().__setitem__(name, value)


class _Template:
    """Compiled template with its variables.

    Attributes:
      literals: its texts, in constants and between tags.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], now: str):
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["namespace"] = _namespace
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = datetime.datetime.fromisoformat(now).strftime
        self._template = environment.from_string(source)
        self._variables = variables
        tree = environment.parse(source)
        self.literals = [
            *(node.data for node in tree.find_all(jinja2.nodes.TemplateData)),
            *(n.value for n in tree.find_all(jinja2.nodes.Const) if isinstance(n.value, str)),
        ]

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text, size = [], 0
        for chunk in self._template.generate(
            **self._variables,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
        ):
            text.append(chunk)
            size += len(chunk)
            _bound(size)
        return "".join(text)


def serve(processor_s: float) -> None:
    """Serves requests until the socket is closed, each within that processor time (seconds).

    A request with a "source" compiles it: {"literals": [...]}. One without renders the messages:
    {"text": ...}, or {"missing": true} if the template is not cached. Either may be {"error": ...}.
    """
    templates: dict[int, _Template] = {}
    while request := _receive():
        signal.setitimer(signal.ITIMER_PROF, processor_s)
        reply = json.dumps(_answer(templates, request), ensure_ascii=False)
        encoded = reply.encode("utf-8", "surrogatepass")
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(encoded)


def _answer(templates: dict[int, _Template], request: dict[str, Any]) -> dict[str, Any]:
    key = request["key"]
    try:
        if "source" in request:
            made = _Template(request["source"], request["variables"], request["now"])
            templates[key] = made
            for old in list(templates)[:-CACHED_TEMPLATES]:
                del templates[old]
            return {"literals": made.literals}
        if key not in templates:
            return {"missing": True}
        return {"text": templates[key].render(request["messages"], request["prompt"])}
    except _FAILURES as error:
        return {"error": _line(error)}


def _receive() -> dict[str, Any] | None:
    """Reads the next request; None at the end."""
    try:
        (size,) = struct.unpack(">I", _read(4))
        return json.loads(_read(size))
    except (EOFError, ConnectionError):
        return None


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(reply: bytes) -> None:
    left = memoryview(struct.pack(">I", len(reply)) + reply)
    while left:
        left = left[os.write(0, left) :]


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _bound(size: int) -> None:
    if size > LONGEST_OUTPUT:
        raise SecurityError(f"it makes more than {LONGEST_OUTPUT} characters or items")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Formats as JSON without the HTML escapes of jinja2's filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _line(error: Exception) -> str:
    """Returns the error in one line, without control characters."""
    text = str(error)
    shown = "".join(c if c.isprintable() else " " for c in text[:LONGEST_ERROR])
    dots = "…" * (len(text) > LONGEST_ERROR)
    return " ".join(shown.split()) + dots or type(error).__name__


def _limit(kind: int, size: int) -> None:
    """Lowers a resource limit of this process, if the system has it."""
    hard = resource.getrlimit(kind)[1]
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (size, size))


def _address_space() -> int:
    """Returns the mapped bytes of this process, with the system's locales; 0 without /proc."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def main(memory_bytes: str, processor_s: str) -> None:
    """Serves within a memory limit. Its parent handles signals to the whole run."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _address_space() + int(memory_bytes))
    try:
        serve(float(processor_s))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main(*sys.argv[1:])
