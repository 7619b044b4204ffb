"""A chat template: messages to text, rendered in a sandbox as transformers renders it.

Templates come with downloaded weights and are code that nobody here has read: they reach nothing
but their variables, and whatever goes wrong in one is a line that names its file.
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mcr_jax.data.conversation import Messages
from mcr_jax.errors import McrError

_LONGEST = 1 << 24  # characters of a rendered conversation, or items of a repeated sequence
_FAILURES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)


class ChatTemplate:
    """A compiled template with its variables.

    Attributes:
      source: the template's text.
      origin: the file it comes from.
      literals: all text that is written in it, as constants or between tags.
    """

    def __init__(
        self, source: str, origin: str, variables: Mapping[str, Any], now: datetime.datetime
    ):
        """Compiles `source`.

        Args:
          source: the template.
          origin: names it in errors.
          variables: what it can read beside the messages: special tokens, options.
          now: what `strftime_now` tells, always the same.

        Raises:
          McrError: it is not a template.
        """
        self.source, self.origin, self._variables = source, origin, dict(variables)
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["namespace"] = _namespace
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = now.strftime
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except _FAILURES as error:
            raise McrError(f"{origin}: not a chat template: {_line(error)}") from error
        self.literals: tuple[str, ...] = (
            *(node.data for node in tree.find_all(jinja2.nodes.TemplateData)),
            *(n.value for n in tree.find_all(jinja2.nodes.Const) if isinstance(n.value, str)),
        )

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The text of a conversation, with the head of the assistant's next turn if asked for.

        Raises:
          McrError: the template refuses the messages, fails, leaves the sandbox or does not end
            within 16 million characters. Its time is bounded by nothing else.
        """
        text, size = [], 0
        try:
            for chunk in self._template.generate(
                **self._variables,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            ):
                text.append(chunk)
                size += len(chunk)
                _bound(size)
        except _FAILURES as error:
            raise McrError(f"{self.origin}: the chat template fails: {_line(error)}") from error
        return "".join(text)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which no product makes a huge value; ranges it bounds already."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context, operator, left, right):
        if operator == "**":
            raise SecurityError("powers are not for templates")
        for value, times in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(times, int):
                _bound(len(value) * times)
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which a template marks what the assistant says: its body as is."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Keeps names out that Python itself would look for."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} is no name for a namespace's attribute")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _bound(size: int) -> None:
    if size > _LONGEST:
        raise SecurityError(f"it makes more than {_LONGEST} characters or items")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
