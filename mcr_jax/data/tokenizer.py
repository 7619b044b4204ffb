"""Text to token ids and back, and conversations to ids with the spans that are trained.

A conversation is laid out by one rule for training and for sampling, and tokenized once: what is
trained is found by character offsets, so boundaries are those that inference meets.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mcr_jax.errors import McrError

FILE = "tokenizer.model"
_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
_SYMBOLS = (*_ROLES.values(), "<think>", "</think>", "<answer>", "</answer>", "\n")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenized conversation.

    Attributes:
      ids: token ids.
      trained: for each id, whether it belongs to an assistant's turn; the end-of-turn token does.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


class Tokenizer:
    """A SentencePiece model and the layout of conversations around it.

    A turn is its role's marker, a newline, the content; an assistant's turn ends with the model's
    end-of-sentence id. Markers written inside a content are defused: text cannot change the roles.

    Attributes:
      vocab_size: number of ids.
      eos_ids: the ids that end an answer.
      fingerprint: SHA-256 (hex) of the model file.
    """

    def __init__(self, model: bytes, origin: str):
        """Parses a serialized SentencePiece model; `origin` names it in errors."""
        self._model, self._pieces = model, sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise McrError(f"{origin}: not a SentencePiece model") from error
        # A file cut between two of its pieces still loads; what stands behind the pieces is gone.
        if not sentencepiece_model_pb2.ModelProto.FromString(model).HasField("normalizer_spec"):
            raise McrError(f"{origin}: this SentencePiece model is cut short")
        if self._pieces.eos_id() < 0:
            raise McrError(f"{origin}: this SentencePiece model has no end-of-sentence piece")
        self.vocab_size: int = self._pieces.vocab_size()
        self.eos_ids: tuple[int, ...] = (self._pieces.eos_id(),)
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads FOLDER/tokenizer.model. Raises McrError if it is missing or broken."""
        path = Path(folder) / FILE
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise McrError(f"{path}: cannot read the tokenizer: {error.strerror}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Fits a BPE model with byte fallback, so that every text survives encode and decode.

        The one exception is U+2581, SentencePiece's own mark of a space: it comes back as a space.

        Raises:
          McrError: the corpus is too small for `vocab_size` pieces.
        """
        sink = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(texts),
                model_writer=sink,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                user_defined_symbols=list(_SYMBOLS),
                split_digits=True,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise McrError(f"cannot train a tokenizer of {vocab_size} pieces: {error}") from error
        return cls(sink.getvalue(), "the trained tokenizer")

    def save(self, folder: str | Path) -> None:
        """Writes FOLDER/tokenizer.model, whole or not at all. Raises McrError if it cannot."""
        path = Path(folder) / FILE
        aside = path.with_name(f".{FILE}.aside")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as file:
                file.write(self._model)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise McrError(f"{path}: cannot write the tokenizer: {error.strerror}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no beginning or end ids are added."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids have none."""
        return self._pieces.DecodeIds(list(ids))

    def encode_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation that the assistant is about to continue."""
        return self.encode("".join(_turn(m) for m in messages) + _header("assistant"))

    def encode_conversation(self, messages: Sequence[Mapping[str, str]]) -> Encoded:
        """Ids of a conversation whose only assistant turn is the last, and which are trained.

        The untrained ids are exactly `encode_prompt` of the turns before.

        Raises:
          ValueError: the last turn is not the assistant's.
          McrError: this tokenizer reads the turns before otherwise once an answer follows.
        """
        *before, answer = messages
        if answer["role"] != "assistant":
            raise ValueError("the last turn must be the assistant's")
        prompt = "".join(_turn(m) for m in before) + _header("assistant")
        start, text = len(prompt), prompt + _defused(answer["content"])
        pieces = self._pieces.EncodeAsOffsetMapping(text)
        trained = [begin >= start for begin, _ in pieces["offsets"]]
        untrained = trained.index(True) if True in trained else len(trained)
        if pieces["ids"][:untrained] != self.encode(prompt) or not all(trained[untrained:]):
            raise McrError("this tokenizer merges text across the start of the assistant's turn")
        ids = (*pieces["ids"], *self.eos_ids[:1])
        return Encoded(ids=ids, trained=(*trained, True))


def _header(role: str) -> str:
    return f"{_ROLES[role]}\n"


def _turn(message: Mapping[str, str]) -> str:
    return f"{_header(message['role'])}{_defused(message['content'])}\n"


def _defused(content: str) -> str:
    for marker in _ROLES.values():
        content = content.replace(marker, marker.replace("<|", "<\u200b|"))
    return content
