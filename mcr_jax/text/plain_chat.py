"""Layout of conversations for a SentencePiece model without a chat template."""

from collections.abc import Mapping

from mcr_jax.text.conversation import TAGS, Encoded, Messages, defuser, split_last, tokenize
from mcr_jax.text.sentencepiece_model import SentencePieceModel

MARKERS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SYMBOLS = (*MARKERS.values(), *TAGS, "\n")  # one token each in a model trained here

# The same layout as a chat template; the assistant's last turn ends with the eos token.
TEMPLATE = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] }}
{%- if loop.last and message['role'] == 'assistant' -%}
{{ eos_token }}
{%- else -%}
{{ '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}
"""

_defused = defuser(MARKERS.values())


class PlainChat:
    """Encoder of turns as the role's marker, a newline, the content and a newline.

    The assistant's last turn ends with the end-of-sentence id, which no text encodes to. Markers in
    a content are defused, so that text cannot change the roles.
    """

    def __init__(self, pieces: SentencePieceModel):
        self._pieces = pieces

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Returns ids of a conversation, up to the assistant's next turn."""
        return self._pieces.encode("".join(map(_turn, messages)) + _header("assistant"))

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Returns ids of a conversation that ends with the assistant's turn.

        The ids that are not trained are exactly `encode_prompt` of the turns before. The newline
        after earlier assistant turns is not in their spans.

        Raises:
          ValueError: the last turn is not the assistant's.
          McrError: the turns before have other ids when an answer follows.
        """
        before, answer = split_last(messages)
        text, turns = "", []
        for message in before:
            if message["role"] == "assistant":
                start = len(text) + len(_header("assistant"))
                turns.append((start, start + len(_defused(message["content"]))))
            text += _turn(message)
        text += _header("assistant")
        turns.append((len(text), len(text) + len(_defused(answer))))
        prompt = self._pieces.encode(text)
        said = tokenize(self._pieces, text + _defused(answer), prompt, turns)
        start, stop = said.spans[-1]
        return Encoded(
            ids=(*said.ids, self._pieces.eos_id),
            spans=(*said.spans[:-1], (start, stop + 1)),
            trained=(*said.trained, True),
        )


def _header(role: str) -> str:
    return f"{MARKERS[role]}\n"


def _turn(message: Mapping[str, str]) -> str:
    return f"{_header(message['role'])}{_defused(message['content'])}\n"
