"""Chat templates: messages to text, rendered in a sandbox as transformers renders them.

Templates come with downloaded weights and are untrusted code. They run in a process with limited
memory and time, and a failure is one line that names the file.
"""

import datetime
import itertools
from collections.abc import Mapping
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.text import template_process
from mcr_jax.text.conversation import Messages
from mcr_jax.text.template_process import TemplateProcess

LONGEST_SOURCE = 1 << 18  # characters; published templates have at most some 30 thousand

_keys = itertools.count()


class ChatTemplate:
    """A compiled template with its variables.

    Attributes:
      source: the template's text.
      origin: the file it comes from.
      literals: its texts, in constants and between tags.
    """

    def __init__(
        self,
        source: str,
        origin: str,
        variables: Mapping[str, Any],
        now: datetime.datetime,
        process: TemplateProcess = template_process.SHARED,
    ):
        """Compiles `source`.

        Args:
          source: the template.
          origin: its name in errors.
          variables: that it reads besides the messages, as JSON: special tokens, options.
          now: the fixed time of `strftime_now`.
          process: that runs it.

        Raises:
          McrError: it is not a template, or too long or too slow to compile.
        """
        self.source, self.origin, self._process = source, origin, process
        if len(source) > LONGEST_SOURCE:
            raise McrError(f"{origin}: not a chat template: more than {LONGEST_SOURCE} characters")
        self._compiled = {
            "key": next(_keys),
            "source": source,
            "variables": dict(variables),
            "now": now.isoformat(),
        }
        try:
            self.literals: tuple[str, ...] = process.compile(self._compiled)
        except McrError as error:
            raise McrError(f"{origin}: not a chat template: {error}") from error

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """Renders a conversation, optionally with the header of the assistant's next turn.

        Raises:
          McrError: the template refuses the messages, fails, leaves the sandbox, makes more than
            16 million characters or breaks another of its `Limits`.
        """
        turns = [dict(message) for message in messages]
        try:
            return self._process.render(self._compiled, turns, add_generation_prompt)
        except McrError as error:
            raise McrError(f"{self.origin}: the chat template fails: {error}") from error
