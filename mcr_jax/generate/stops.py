"""Finds the first stop string in a text that grows token by token."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

_BLOCK = 16  # tokens that are looked at together, and as many before them for context
_RECENT = 16  # blocks that an answer may have grown by since it was looked at
_DIGEST_BYTES = 16
_HALF = "\ufffd"  # what a tokenizer makes of bytes that are no character, or not yet


class StopFinder:
    """Finds the fewest tokens whose text holds a stop string; to be asked as they grow.

    What it finds follows from the tokens alone, not from when it was asked before: it goes over
    them in blocks that begin at multiples of a fixed length. It remembers by their digest which
    blocks held none, so that asking now and then about many growing answers decodes each token a
    few times, not once for every time it is asked.

    Args:
      decode: token ids to their text.
      stops: none of them empty or with U+FFFD in it.
      eos: ids that end an answer and are no part of its text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: tuple[str, ...], eos: tuple[int, ...]
    ):
        self._decode, self._stops, self._eos = decode, stops, frozenset(eos)
        self._longest = max(map(len, stops))
        # By digest of tokens in full blocks without a stop string: of their text, as much as one
        # that goes on may begin in.
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
            # Half a character at the end of the context is read again with its other half.
            told = len(self._decode(window[:context]).rstrip(_HALF))

            def behind(count: int, window=window, told=told, tail=tail) -> str:
                return tail + self._decode(window[:count])[told:]

            text = behind(len(window))
            if self._holds(text):
                counts = range(context + 1, len(window) + 1)
                return first - context + next(n for n in counts if self._holds(behind(n)))
            if last - first < _BLOCK:
                break
            first, tail = last, text.rstrip(_HALF)[-self._longest :]
        self._tails[_digest(tokens[:first])] = tail
        return None

    def _known(self, tokens: np.ndarray, count: int) -> tuple[int, str]:
        """Returns the number of tokens known to hold no stop string, and the tail of their text."""
        last = count - count % _BLOCK
        recent = range(last, max(0, last - _RECENT * _BLOCK), -_BLOCK)
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
    """`text` up to the end of the stop string in it that ends first; all of it without one."""
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=_DIGEST_BYTES).digest()
