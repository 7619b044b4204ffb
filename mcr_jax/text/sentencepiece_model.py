"""SentencePiece models: text to token ids and back."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece

from mcr_jax.errors import McrError
from mcr_jax.text import sentencepiece_proto


class SentencePieceModel:
    """Encoder with a serialized SentencePiece model.

    Attributes:
      serialized: content of the model's file.
      vocab_size: number of ids.
      eos_id: the id of the end-of-sentence piece.
    """

    def __init__(self, serialized: bytes, origin: str):
        """Parses `serialized`; `origin` names it in errors. Raises McrError if it is broken."""
        self.serialized, self._pieces = serialized, sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(serialized)
        except RuntimeError as error:
            raise McrError(f"{origin}: not a SentencePiece model") from error
        # A file cut between two pieces loads without the fields after the pieces.
        if not self.proto().HasField("normalizer_spec"):
            raise McrError(f"{origin}: this SentencePiece model is cut short")
        if self._pieces.eos_id() < 0:
            raise McrError(f"{origin}: this SentencePiece model has no end-of-sentence piece")
        self.vocab_size: int = self._pieces.vocab_size()
        self.eos_id: int = self._pieces.eos_id()

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, symbols: Sequence[str]
    ) -> "SentencePieceModel":
        """Fits a BPE model with byte fallback: decoding restores every encoded text.

        The one exception is U+2581, SentencePiece's own space, which is decoded as a space.

        Args:
          texts: the corpus.
          vocab_size: largest number of pieces.
          symbols: texts that are always one token each.

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
                user_defined_symbols=list(symbols),
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

    def proto(self) -> sentencepiece_proto.ModelProto:
        """Parses the model's pieces and specifications."""
        return sentencepiece_proto.ModelProto.FromString(self.serialized)

    def encode(self, text: str) -> list[int]:
        """Returns token ids of `text`; names of control pieces in it are plain text."""
        return self._pieces.EncodeAsIds(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns token ids of `text` and the characters [begin, end) of each."""
        mapping = self._pieces.EncodeAsOffsetMapping(text)
        return mapping["ids"], mapping["offsets"]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; control ids have none."""
        return self._pieces.DecodeIds(list(ids))
