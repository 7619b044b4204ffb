"""A chat template: messages to text, rendered in a sandbox as transformers renders it.

Templates come with downloaded weights and are code that nobody here has read. They run in a
process whose memory and time are limited, and whatever goes wrong in one is a line that names its
file.
"""

import datetime
import itertools
from collections.abc import Mapping
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.text import template_process
from mcr_jax.text.conversation import Messages
from mcr_jax.text.template_process import TemplateProcess

LONGEST_SOURCE = 1 << 18  # characters; the longest published ones have some 30 thousand

_keys = itertools.count()


class ChatTemplate:
    """A compiled template with its variables.

    Attributes:
      source: the template's text.
      origin: the file it comes from.
      literals: all text that is written in it, as constants or between tags.
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
          origin: names it in errors.
          variables: what it can read beside the messages, as JSON: special tokens, options.
          now: what `strftime_now` tells, always the same.
          process: where it runs.

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
        """The text of a conversation, with the head of the assistant's next turn if asked for.

        Raises:
          McrError: the template refuses the messages, fails, leaves the sandbox, makes more than
            16 million characters or breaks another of its `Limits`.
        """
        turns = [dict(message) for message in messages]
        try:
            return self._process.render(self._compiled, turns, add_generation_prompt)
        except McrError as error:
            raise McrError(f"{self.origin}: the chat template fails: {error}") from error
