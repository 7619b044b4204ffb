"""Search for the first stop string in a text that grows token by token."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

_BLOCK = 16  # tokens searched together, after as many tokens of context
_RECENT_BLOCKS = 16  # most blocks by which an answer usually grows between two calls
_DIGEST_BYTES = 16
_INCOMPLETE = "\ufffd"  # a tokenizer's text for bytes that are no complete character


class StopFinder:
    """Finds the fewest tokens whose text holds a stop string; called again as the tokens grow.

    The result depends on the tokens alone, not on earlier calls: the search goes in blocks that
    begin at multiples of a fixed length. The digests of blocks without a stop string are cached, so
    repeated calls on many growing answers decode each token only a few times.

    Args:
      decode: turns token ids into text.
      stops: stop strings, none of them empty or with U+FFFD in it.
      eos: ids that end an answer and are no part of its text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: tuple[str, ...], eos: tuple[int, ...]
    ):
        self._decode, self._stops, self._eos = decode, stops, frozenset(eos)
        self._longest = max(map(len, stops))
        # Digest of tokens in full blocks without a stop string -> the tail of their text, in which
        # a stop string may begin.
        self._tails: dict[bytes, str] = {}

    def __call__(self, tokens: np.ndarray) -> int | None:
        """Returns the number of `tokens`, int [any], to keep; None without a stop string."""
        ids = tokens.tolist()
        if ids and ids[-1] in self._eos:
            ids.pop()
        first, tail = self._known(tokens, len(ids))
        while first < len(ids):
            last = min(first + _BLOCK, len(ids))
            window = ids[max(0, first - _BLOCK) : last]
            context = len(window) - (last - first)
            # Half a character at the end of the context is decoded again with its other half.
            known = len(self._decode(window[:context]).rstrip(_INCOMPLETE))

            def text_of(count: int, window=window, known=known, tail=tail) -> str:
                return tail + self._decode(window[:count])[known:]

            text = text_of(len(window))
            if self._holds(text):
                counts = range(context + 1, len(window) + 1)
                return first - context + next(n for n in counts if self._holds(text_of(n)))
            if last - first < _BLOCK:
                break
            first, tail = last, text.rstrip(_INCOMPLETE)[-self._longest :]
        self._tails[_digest(tokens[:first])] = tail
        return None

    def _known(self, tokens: np.ndarray, count: int) -> tuple[int, str]:
        """Returns the number of tokens cached as without a stop string, and their text's tail."""
        last = count - count % _BLOCK
        recent = range(last, max(0, last - _RECENT_BLOCKS * _BLOCK), -_BLOCK)
        for full in recent:
            if (tail := self._tails.get(_digest(tokens[:full]))) is not None:
                return full, tail
        found, before = (0, ""), hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for full in range(_BLOCK, last - len(recent) * _BLOCK + 1, _BLOCK):
            before.update(tokens[full - _BLOCK : full].tobytes())
            if (tail := self._tails.get(before.copy().digest())) is not None:
                found = full, tail
        return found

    def _holds(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """Cuts `text` after the stop string that ends first; without a stop string keeps all."""
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=_DIGEST_BYTES).digest()
