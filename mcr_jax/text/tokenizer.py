"""Tokenizers: text to ids and back, and conversations to ids with the trained spans.

A tokenizer is a SentencePiece model or a `tokenizer.json`. Training and sampling share one layout
of conversations. The trained spans come from character offsets, so their boundaries are those of
inference.
"""

import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.text import sentencepiece_export, tokenizer_folder
from mcr_jax.text.chat_template import ChatTemplate
from mcr_jax.text.conversation import Chat, Encoded, Messages, NoChat, Pieces
from mcr_jax.text.plain_chat import SYMBOLS, PlainChat
from mcr_jax.text.sentencepiece_model import SentencePieceModel
from mcr_jax.text.template_chat import TemplateChat
from mcr_jax.text.tokenizer_folder import TokenizerFolder
from mcr_jax.text.tokenizer_json import TokenizerJson
from mcr_jax.workdir import digest

FILE = tokenizer_folder.SENTENCEPIECE  # of a tokenizer trained here


class Tokenizer:
    """Pieces, layout of conversations, and their files; made by `load` or `train`.

    Attributes:
      vocab_size: number of ids; a model may have more.
      eos_ids: the ids that end an answer; training uses the first.
      fingerprint: SHA-256 (hex) of everything that decides ids.
      files: content of each file that `save` writes, by name.
    """

    def __init__(
        self,
        pieces: Pieces,
        chat: Chat,
        eos_ids: Sequence[int],
        fingerprint: str,
        files: Mapping[str, bytes],
    ):
        self._pieces, self._chat = pieces, chat
        self.vocab_size = pieces.vocab_size
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))
        self.fingerprint = fingerprint
        self.files = dict(files)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        template_options: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> "Tokenizer":
        """Reads FOLDER/tokenizer.json, else FOLDER/tokenizer.model, and the files beside it.

        The chat template is that of chat_template.jinja, else of tokenizer_config.json, else of
        chat_template.json; a tokenizer.model without one has the layout of `PlainChat`. Answers
        end with the template's end of turn, the config's eos token, or an eos_token_id of
        generation_config.json.

        Args:
          folder: a Hugging Face folder, or one that `save` wrote.
          template_options: more variables for the template, such as `enable_thinking`, or
            `date_string` for one that would show today's date.
          now: the fixed time of templates; None for the current one.

        Raises:
          McrError: a file is missing or broken.
        """
        found = TokenizerFolder(folder)
        if tokenizer_folder.JSON not in found.files:
            return _sentencepiece(found)
        return _json(found, template_options or {}, now or datetime.datetime.now())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Fits a SentencePiece model; arguments and errors as of `SentencePieceModel.train`."""
        model = SentencePieceModel.train(texts, vocab_size, SYMBOLS)
        fingerprint = hashlib.sha256(model.serialized).hexdigest()
        return cls(model, PlainChat(model), [model.eos_id], fingerprint, {FILE: model.serialized})

    def save(self, folder: str | Path) -> None:
        """Writes its files, each atomically. Raises McrError if one cannot be written."""
        tokenizer_folder.write(folder, self.files)

    def save_hf(self, folder: str | Path) -> None:
        """Writes the files that transformers loads: those of `save`, and a missing tokenizer.json.

        For model_type "qwen2" in config.json, AutoTokenizer of transformers 5 replaces any
        tokenizer.json by its own rules; PreTrainedTokenizerFast reads the file.

        Raises:
          McrError: a file cannot be written; or this is a bare SentencePiece model that was not
            trained here, which only `save` supports.
        """
        files = dict(self.files)
        bare = tokenizer_folder.CONFIG not in files  # else transformers converts it
        if bare and isinstance(self._pieces, SentencePieceModel):
            files |= sentencepiece_export.files(self._pieces)
        tokenizer_folder.write(folder, files)

    def encode(self, text: str) -> list[int]:
        """Returns token ids of `text` without added beginning or end ids."""
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; control ids have none, the tags of a completion do."""
        return self._pieces.decode(ids)

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Returns ids of a conversation, up to the assistant's next turn.

        Raises:
          McrError: there is no chat template, or it refuses the conversation.
        """
        return self._chat.encode_prompt(messages)

    def encode_conversation(self, messages: Messages) -> Encoded:
        """Returns ids of a conversation that ends with the assistant's turn, and the trained spans.

        The untrained ids are exactly `encode_prompt` of the turns before.

        Raises:
          ValueError: the last turn is not the assistant's.
          McrError: there is no chat template, it refuses the conversation, or the turns before have
            other ids when the answer follows.
        """
        return self._chat.encode_conversation(messages)


def _sentencepiece(found: TokenizerFolder) -> Tokenizer:
    path = found.path / FILE
    if FILE not in found.files:
        raise McrError(f"{path}: cannot read the tokenizer: No such file, nor a tokenizer.json")
    model = SentencePieceModel(found.files[FILE], str(path))
    chat: Chat = PlainChat(model)
    if template := found.chat_template():
        chat = NoChat(
            f"{template[1]}: a chat template needs a tokenizer.json beside it; transformers writes "
            "one with save_pretrained"
        )
    eos_ids = (model.eos_id, *found.eos_ids())
    fingerprint = hashlib.sha256(model.serialized).hexdigest()
    return Tokenizer(model, chat, eos_ids, fingerprint, found.files)


def _json(found: TokenizerFolder, options: Mapping[str, Any], now: datetime.datetime) -> Tokenizer:
    path = found.path / tokenizer_folder.JSON
    content = found.files[tokenizer_folder.JSON]
    pieces = TokenizerJson(content, str(path), found.added_tokens, found.special_texts)
    facts = {
        "tokenizer": hashlib.sha256(content).hexdigest(),
        "added": [token.__getstate__() for token in found.added_tokens],
        "special": found.special_texts,
    }
    eos = found.special_tokens.get("eos_token", "")
    eos_ids = [pieces.added[eos]] if eos else []
    chat: Chat = NoChat(f"{path}: no chat template; put the model's chat_template.jinja beside it")
    if template := found.chat_template():
        variables = {**found.special_tokens, **options}
        chat = TemplateChat(ChatTemplate(*template, variables, now), pieces, eos)
        eos_ids.insert(0, chat.end_id)
        facts |= {"template": template[0], "variables": variables, "sample": chat.sample}
    eos_ids += found.eos_ids()
    if any(i >= pieces.vocab_size for i in eos_ids):
        raise McrError(
            f"{found.path / tokenizer_folder.GENERATION}: an eos_token_id is beyond the "
            f"{pieces.vocab_size} ids of {tokenizer_folder.JSON}"
        )
    return Tokenizer(pieces, chat, eos_ids, digest({**facts, "eos": eos_ids}), found.files)
