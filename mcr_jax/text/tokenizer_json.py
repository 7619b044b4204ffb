"""A `tokenizer.json`: text to token ids and back, as the `tokenizers` library reads it."""

from collections.abc import Mapping, Sequence

import tokenizers

from mcr_jax.errors import McrError
from mcr_jax.text.conversation import TAGS


class TokenizerJson:
    """Encodes with a serialized `tokenizers.Tokenizer`, never truncating, padding or adding ids.

    Attributes:
      vocab_size: the largest id and one, added tokens included.
      added: the added tokens' ids by their text; text that reads so becomes that id.
      special: those of them that are marked special.
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
          origin: names it in errors.
          tokens: added tokens that are declared elsewhere: those that the file lacks are added in
            this order, the flags of those that it has are replaced.
          special_texts: what is to be a special token, unless it is an added token already.

        Raises:
          McrError: the file is broken or cut.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(serialized.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise McrError(f"{origin}: not a tokenizer, or cut short: not UTF-8") from error
        except Exception as error:  # the library raises nothing narrower
            reason = " ".join(str(error).split())
            raise McrError(f"{origin}: not a tokenizer, or cut short: {reason}") from error
        self._tokenizer.no_truncation()  # some files were saved with a length in them
        self._tokenizer.no_padding()
        # It would add ids, which no caller wants here, and trim spaces from the offsets.
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
        """Token ids of `text`, added tokens that are written in it included."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` and the characters [begin, end) that each came from."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens have none, and the tags of a completion always do."""
        told = [i for i in ids if i not in self._silent]
        return self._tokenizer.decode(told, skip_special_tokens=False)
