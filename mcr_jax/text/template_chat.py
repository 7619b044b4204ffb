"""Layout of conversations by a model's chat template, the same for training and sampling."""

import functools
from collections.abc import Mapping, Sequence

from mcr_jax.errors import McrError
from mcr_jax.text.chat_template import ChatTemplate
from mcr_jax.text.conversation import TAGS, Encoded, Messages, Span, defuser, split_last, tokenize
from mcr_jax.text.tokenizer_json import TokenizerJson

_SYSTEM, _USER = ({"role": role, "content": "x"} for role in ("system", "user"))
_PRIVATE = range(0xE000, 0xF900)  # private-use characters of Unicode
_CACHED_TURNS = 256  # sequences of turns whose control tokens are cached


class TemplateChat:
    """Encoder that renders with a chat template and tokenizes the text.

    A prompt is the template's text with the generation prompt, as in transformers. A conversation
    is the same prompt, the answer as written and the template's end of turn. The template's own
    text of an answer is not used: some templates remove its thinking (DeepSeek), add an empty one
    (Qwen 3), or do not continue any prompt. So training uses exactly the ids of sampling.

    Control tokens are the special ones and other added ones in the template, without the tags of a
    completion. In a content they are defused, and every conversation is checked to have the same
    control tokens as its turns with harmless contents.

    Attributes:
      end_id: the id that ends an assistant's turn.
      sample: a short rendered conversation, which distinguishes templates and dates.
    """

    def __init__(self, template: ChatTemplate, pieces: TokenizerJson, eos_token: str):
        """Finds the end of a turn in the template; falls back to `eos_token` ("" for none).

        Raises:
          McrError: the template fails on a user's turn and an answer, or nothing ends a turn.
        """
        self._template, self._pieces = template, pieces
        mark = chr(_PRIVATE[0])
        answered = (_USER, {"role": "assistant", "content": mark})
        shown = template.render(answered, add_generation_prompt=False)
        try:
            sample = template.render((_SYSTEM, *answered, _USER), add_generation_prompt=True)
        except McrError:  # some templates have no system turn
            sample = template.render((*answered, _USER), add_generation_prompt=True)
        self.sample = sample
        written = "\0".join((*template.literals, shown, sample))
        controls = {
            token: id_
            for token, id_ in pieces.added.items()
            if len(token) > 1
            and not token.isspace()
            and token not in TAGS
            and (token in pieces.special or token in written)
        }
        self._control_ids = frozenset(controls.values())
        self._due = functools.lru_cache(_CACHED_TURNS)(self._controls_of_turns)
        self._defused = defuser(controls)
        _, found, tail = shown.rpartition(mark)
        ends = {tail.find(token): token for token in sorted(controls, key=len) if token in tail}
        if found and ends:
            first = min(ends)
            self._end = tail[: first + len(ends[first])]
            self.end_id = controls[ends[first]]
        elif eos_token in controls:
            self._end, self.end_id = eos_token, controls[eos_token]
        else:
            raise McrError(f"{template.origin}: nothing ends a turn, and no eos_token is a token")

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Returns ids of a conversation, up to the assistant's next turn.

        Raises:
          McrError: the template refuses it, or a content would change its turns.
        """
        return self._prompt(messages)[1]

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Returns ids of a conversation that ends with the assistant's turn.

        The ids that are not trained are exactly `encode_prompt` of the turns before. If that ends
        with `<think>` and the answer begins with it, it is written once. The span of an earlier
        assistant turn is the part of the prompt that depends on its content, with the end of turn;
        it is empty if the template drops the turn.

        Raises:
          ValueError: the last turn is not the assistant's.
          McrError: as `encode_prompt`; or the prompt has other ids when the answer follows.
        """
        before, answer = split_last(messages)
        text, prompt = self._prompt(before)
        said = [i for i, message in enumerate(before) if message["role"] == "assistant"]
        turns = [self._turn(before, i, text) for i in said]
        turns.append((len(text), len(text)))
        text += _continuation(text, self._defused(answer)) + self._end
        encoded = tokenize(self._pieces, text, prompt, turns)
        self._check(encoded.ids[encoded.spans[-1][0] :], [self.end_id])
        return encoded

    def _prompt(self, messages: Messages) -> tuple[str, list[int]]:
        safe = [_with(m, self._defused(m["content"])) for m in messages]
        text = self._template.render(safe, add_generation_prompt=True)
        ids = self._pieces.encode(text)
        harmless = (_with(m, "x" if m["content"].strip() else "") for m in messages)
        self._check(ids, self._due(tuple(tuple(m.items()) for m in harmless)))
        return text, ids

    def _controls_of_turns(self, harmless: tuple[tuple[tuple[str, str], ...], ...]) -> list[int]:
        """Returns the control tokens of a prompt from the items of each message."""
        text = self._template.render([dict(m) for m in harmless], add_generation_prompt=True)
        return self._controls(self._pieces.encode(text))

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._control_ids]

    def _check(self, ids: Sequence[int], due: Sequence[int]) -> None:
        if self._controls(ids) != due:
            raise McrError("the text of a message would change the turns of its conversation")

    def _turn(self, messages: Messages, index: int, text: str) -> Span:
        """Returns the characters of `text` that depend on a message's content, with the end."""
        mark = next(chr(c) for c in _PRIVATE if chr(c) not in text)
        other = [_with(m, self._defused(m["content"])) for m in messages]
        other[index]["content"] = mark
        changed = self._template.render(other, add_generation_prompt=True)
        start = _shared(text, changed)
        stop = len(text) - _shared(text[start:][::-1], changed[start:][::-1])
        return start, stop + len(self._end) * text.startswith(self._end, stop)


def _with(message: Mapping[str, str], content: str) -> dict[str, str]:
    return {**message, "content": content}


def _continuation(prompt: str, answer: str) -> str:
    """Returns the part of `answer` left to write where `prompt` has opened the thinking."""
    opened = prompt.rstrip()
    if not (opened.endswith(TAGS[0]) and answer.startswith(TAGS[0])):
        return answer
    return answer.removeprefix(TAGS[0]).removeprefix(prompt[len(opened) :])


def _shared(a: str, b: str) -> int:
    """Returns the length of the common prefix of two texts."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))
