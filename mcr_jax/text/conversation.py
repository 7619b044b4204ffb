"""Tokenized conversations, and protection of their turns against the text of messages.

A conversation is a sequence of messages, each with a `role` (system, user or assistant) and a
`content`. How it is laid out as text is `plain_chat` or `template_chat`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from mcr_jax.errors import McrError

# What a completion is written with: text for a reader of the ids, special token or not.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenized conversation that ends with an assistant's turn.

    Attributes:
      ids: token ids.
      spans: for each of the assistant's turns, first to last, the ids [start, stop) that are what
        the assistant says, with the end-of-turn token where the layout writes one.
      trained: for each id, whether it is in the last span: the turn that a model is to learn. The
        ids before it are exactly the prompt that inference sees.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    trained: tuple[bool, ...]


class Pieces(Protocol):
    """Text to ids and back: a SentencePiece model or a tokenizer.json."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no beginning or end ids are added."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of `text` and the characters [begin, end) that each came from."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids have none."""


class Chat(Protocol):
    """Encoder of conversations as token ids."""

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Ids of a conversation that the assistant is about to continue."""

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Ids of a conversation whose last turn is the assistant's, and their spans."""


class NoChat:
    """Chat of a tokenizer without any template: refuses every conversation."""

    def __init__(self, reason: str):
        self._reason = reason

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Raises McrError."""
        raise McrError(self._reason)

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Raises McrError."""
        raise McrError(self._reason)


def tokenize(pieces: Pieces, text: str, prompt: Sequence[int], turns: Sequence[Span]) -> Encoded:
    """Tokenizes a laid out conversation, once.

    Args:
      pieces: tokenizes.
      text: the conversation, to its end.
      prompt: ids of the text before the last turn, as inference makes them.
      turns: the characters [start, stop) of each of the assistant's turns, the last to the end.

    Raises:
      McrError: the text before the last turn is read otherwise once an answer follows.
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
    """The turns before, and the assistant's answer. Raises ValueError if it is not the last."""
    *before, answer = messages
    if answer["role"] != "assistant":
        raise ValueError("the last turn must be the assistant's")
    return before, answer["content"]


def defuser(tokens: Collection[str]) -> Callable[[str], str]:
    """A function that breaks every one of `tokens` in a text by a zero-width space, U+200B.

    It comes behind the token's first character, so that the text still looks the same to a reader
    but is no longer read as that token. Every occurrence is broken, overlapping ones too.
    """
    if not tokens:
        return lambda text: text
    starts = re.compile(f"(?={'|'.join(map(re.escape, tokens))})(.)", re.DOTALL)
    return lambda text: starts.sub("\\1\u200b", text)
