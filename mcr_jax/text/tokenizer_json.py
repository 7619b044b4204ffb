"""Tokenizer of a `tokenizer.json`: text to token ids and back, by the `tokenizers` library."""

from collections.abc import Mapping, Sequence

import tokenizers

from mcr_jax.errors import McrError
from mcr_jax.text.conversation import TAGS


class TokenizerJson:
    """Encoder with a serialized `tokenizers.Tokenizer`, without truncation, padding or added ids.

    Attributes:
      vocab_size: one more than the largest id, added tokens included.
      added: ids of the added tokens by text; this text in an input is encoded as the id.
      special: texts of those that are special.
    """

    def __init__(
        self,
        serialized: bytes,
        origin: str,
        tokens: Sequence[tokenizers.AddedToken] = (),
        special_texts: Sequence[str] = (),
    ):
        """Parses `serialized`.

        Args:
          serialized: the file's content.
          origin: its name in errors.
          tokens: added tokens that are declared elsewhere: missing ones are added in this order,
            the flags of others are replaced.
          special_texts: special tokens, unless they are added tokens already.

        Raises:
          McrError: the file is damaged.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(serialized.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise McrError(f"{origin}: not a tokenizer, or cut short: not UTF-8") from error
        except Exception as error:  # the library has no narrower error
            reason = " ".join(str(error).split())
            raise McrError(f"{origin}: not a tokenizer, or cut short: {reason}") from error
        self._tokenizer.no_truncation()  # some files set a length
        self._tokenizer.no_padding()
        # It would add ids, and trim spaces from the offsets.
        self._tokenizer.post_processor = None
        self._tokenizer.add_tokens(list(tokens))
        known = {t.content for t in self._tokenizer.get_added_tokens_decoder().values()}
        special = (tokenizers.AddedToken(t, special=True) for t in special_texts if t not in known)
        self._tokenizer.add_tokens(list(special))
        found = self._tokenizer.get_added_tokens_decoder()
        self.added: Mapping[str, int] = {token.content: i for i, token in found.items()}
        self.special = frozenset(token.content for token in found.values() if token.special)
        self._silent = frozenset(self.added[token] for token in self.special - set(TAGS))
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if not self.vocab_size:
            raise McrError(f"{origin}: this tokenizer has no tokens")

    def encode(self, text: str) -> list[int]:
        """Returns token ids of `text`; texts of added tokens in it become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns token ids of `text` and the characters [begin, end) of each."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; special tokens but the tags of a completion have none."""
        shown = [i for i in ids if i not in self._silent]
        return self._tokenizer.decode(shown, skip_special_tokens=False)
