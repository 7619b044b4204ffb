"""Tokenized conversations, and protection of their turns against the text of messages.

A conversation is a sequence of messages, each with a `role` (system, user or assistant) and a
`content`. `plain_chat` and `template_chat` lay it out as text.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from mcr_jax.errors import McrError

# Tags of a completion: decoded as text, special token or not.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenized conversation that ends with an assistant's turn.

    Attributes:
      ids: token ids.
      spans: the ids [start, stop) of each assistant turn's content, in order, with the end-of-turn
        token where the layout writes one.
      trained: for each id, whether it is in the last span, the turn to learn. The ids before it are
        exactly the prompt of inference.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    trained: tuple[bool, ...]


class Pieces(Protocol):
    """Encoder of text as ids and back: a SentencePiece model or a tokenizer.json."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Returns token ids of `text` without added beginning or end ids."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Returns token ids of `text` and the characters [begin, end) of each."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; control ids have none."""


class Chat(Protocol):
    """Encoder of conversations as token ids."""

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Returns ids of a conversation, up to the assistant's next turn."""

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Returns ids of a conversation that ends with the assistant's turn, and their spans."""


class NoChat:
    """Chat of a tokenizer without a template: raises for every conversation."""

    def __init__(self, reason: str):
        self._reason = reason

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Raises McrError."""
        raise McrError(self._reason)

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Raises McrError."""
        raise McrError(self._reason)


def tokenize(pieces: Pieces, text: str, prompt: Sequence[int], turns: Sequence[Span]) -> Encoded:
    """Tokenizes the text of a conversation.

    Args:
      pieces: the tokenizer.
      text: the conversation.
      prompt: ids of the text before the last turn, as of inference.
      turns: the characters [start, stop) of each assistant turn; the last is the end of the text.

    Raises:
      McrError: the text before the last turn has other ids when an answer follows.
    """
    ids, offsets = pieces.encode_with_offsets(text)
    begins = [begin for begin, _ in offsets]
    start = next((i for i, begin in enumerate(begins) if begin >= turns[-1][0]), len(ids))
    if ids[:start] != list(prompt) or any(begin < turns[-1][0] for begin in begins[start:]):
        raise McrError("this tokenizer merges text across the start of the assistant's turn")
    spans = [
        (
            sum(begin < first for begin in begins[:start]),
            sum(begin < last for begin in begins[:start]),
        )
        for first, last in turns[:-1]
    ]
    return Encoded(
        ids=tuple(ids),
        spans=(*spans, (start, len(ids))),
        trained=(*[False] * start, *[True] * (len(ids) - start)),
    )


def split_last(messages: Messages) -> tuple[Messages, str]:
    """Returns the turns before, and the answer. Raises ValueError if the last is not one."""
    *before, answer = messages
    if answer["role"] != "assistant":
        raise ValueError("the last turn must be the assistant's")
    return before, answer["content"]


def defuser(tokens: Collection[str]) -> Callable[[str], str]:
    """Returns a function that breaks all `tokens` in a text with a zero-width space, U+200B.

    The space follows the token's first character: the text looks the same but is not tokenized as
    that token. Overlapping occurrences are broken, too.
    """
    if not tokens:
        return lambda text: text
    starts = re.compile(f"(?={'|'.join(map(re.escape, tokens))})(.)", re.DOTALL)
    return lambda text: starts.sub("\\1\u200b", text)
