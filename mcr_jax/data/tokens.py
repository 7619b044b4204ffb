"""Tokenized cases in flat arrays, cached in a memory-mapped file, and those that fit a row."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import grain
import numpy as np

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.cache import cached
from mcr_jax.data.example import Example, conversation, example
from mcr_jax.errors import McrError
from mcr_jax.prompts import Prompt
from mcr_jax.text.tokenizer import Tokenizer
from mcr_jax.workdir import digest

_PREFETCH = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)  # examples
_VERSION = 1  # of the arrays in a file, and of the layout of conversations
_ROW_MULTIPLE = 128  # tokens; the lanes of a TPU


class Tokens(Sequence[Example]):
    """Tokenized cases. Arrays of an example are views, read-only if they come from a file.

    Attributes:
      lengths: int64 [examples], tokens of each.
      fingerprints: of the cases.
    """

    def __init__(
        self,
        ids: np.ndarray,
        trained: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        fingerprints: Sequence[str],
    ):
        """Example i is ids[starts[i] : starts[i] + lengths[i]], and the same of `trained`."""
        self._ids, self._trained, self._starts = ids, trained, starts
        self.lengths, self.fingerprints = lengths, tuple(fingerprints)

    def __len__(self) -> int:
        return len(self.fingerprints)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "Tokens": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        span = slice(self._starts[index], self._starts[index] + self.lengths[index])
        return Example(self.fingerprints[index], self._ids[span], self._trained[span])

    def select(self, indices: Sequence[int] | np.ndarray) -> "Tokens":
        """Returns some of the examples, in the given order; copies no token."""
        return Tokens(
            self._ids,
            self._trained,
            self._starts[indices],
            self.lengths[indices],
            [self.fingerprints[i] for i in indices],
        )

    @functools.cached_property
    def highest(self) -> int:
        """Returns the largest id; -1 without examples."""
        return max((int(e.ids.max()) for e in self), default=-1)

    @functools.cached_property
    def digest(self) -> str:
        """Returns the SHA-256 (hex) of all fingerprints, ids and masks, in order."""
        state = hashlib.sha256()
        for e in self:
            state.update(f"{e.fingerprint} {len(e.ids)}\n".encode())
            state.update(np.ascontiguousarray(e.ids))
            state.update(np.ascontiguousarray(e.trained))
        return state.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Examples that fit rows, and those that were dropped.

    Attributes:
      tokens: the examples that fit a row whole.
      row_tokens: tokens of a row.
      dropped: (case fingerprint, tokens) of each longer one.
    """

    tokens: Tokens
    row_tokens: int
    dropped: tuple[tuple[str, int], ...]


def tokenize(
    cases: Sequence[Case],
    prompt: Prompt,
    tokenizer: Tokenizer,
    folder: Path | None,
    traces: Mapping[str, str] | None = None,
) -> Tokens:
    """Tokenizes every case, or reads the result from `folder`.

    The file's key has the texts of all conversations, the prompt and the tokenizer; for changes of
    the code, the ids of the first case and _VERSION. Any number of processes may write it.

    Args:
      cases: a list, or a lazy sequence such as `CaseSource`; with a `folder` each is read twice.
      prompt: the question that each case is put in.
      tokenizer: makes the ids.
      folder: of the cache; None keeps nothing.
      traces: the reasoning to learn, by case fingerprint; None for the cases' own statements.

    Raises:
      McrError: a case cannot be read or tokenized, or the file cannot be written.
    """
    path = None
    if folder is not None:
        path = folder / f"tokens-{_key(cases, prompt, tokenizer, traces)[:32]}"
    made = cached(path, lambda: _arrays(cases, prompt, tokenizer, traces))
    lengths = np.asarray(made["lengths"])
    return Tokens(
        ids=made["ids"],
        trained=made["trained"],
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        fingerprints=[row.tobytes().hex() for row in made["fingerprints"]],
    )


def fit(tokens: Tokens, row_tokens: int, too_long: Literal["drop", "keep"]) -> Fit:
    """Selects the examples that fit a row; none is truncated.

    Args:
      tokens: the examples.
      row_tokens: tokens of a row.
      too_long: "drop" leaves out longer examples; "keep" lengthens rows to the longest example,
        rounded up to a multiple of 128.

    Raises:
      McrError: no example fits.
    """
    longest = int(tokens.lengths.max(initial=0))
    if too_long == "keep" and longest > row_tokens:
        row_tokens = -(-longest // _ROW_MULTIPLE) * _ROW_MULTIPLE
    fits = tokens.lengths <= row_tokens
    if not fits.any():
        shortest = int(tokens.lengths.min()) if len(tokens) else 0
        raise McrError(
            f"no example fits train.row_tokens={row_tokens}; the shortest has {shortest} tokens"
        )
    return Fit(
        tokens=tokens.select(np.flatnonzero(fits)),
        row_tokens=row_tokens,
        dropped=tuple(
            (tokens.fingerprints[i], int(tokens.lengths[i])) for i in np.flatnonzero(~fits)
        ),
    )


def _key(
    cases: Sequence[Case],
    prompt: Prompt,
    tokenizer: Tokenizer,
    traces: Mapping[str, str] | None,
) -> str:
    """Returns the SHA-256 (hex) of the inputs of `tokenize`.

    It has the rendered texts of all cases but the ids of the first only: a change of code that
    affects other cases needs another _VERSION.
    """
    texts = hashlib.sha256()
    with console.track("read cases", len(cases)) as progress:
        for case in cases:
            said = [t["content"] for t in conversation(case, prompt, _trace(case, traces))]
            texts.update(digest([case.fingerprint, *said]).encode())
            progress.advance()
    first = [_example(case, prompt, tokenizer, traces) for case in cases[:1]]
    return digest(
        {
            "version": _VERSION,
            "cases": texts.hexdigest(),
            "prompt": prompt.digest,
            "tokenizer": tokenizer.fingerprint,
            "layout": [[e.ids.tolist(), e.trained.tolist()] for e in first],
        }
    )


def _arrays(
    cases: Sequence[Case],
    prompt: Prompt,
    tokenizer: Tokenizer,
    traces: Mapping[str, str] | None,
) -> Mapping[str, np.ndarray]:
    source = grain.MapDataset.source(cases)
    examples = source.map(lambda case: _example(case, prompt, tokenizer, traces))
    made: list[Example] = []
    with (
        console.track("tokenize", len(cases)) as progress,
        contextlib.closing(iter(examples.to_iter_dataset(_PREFETCH))) as read,
    ):
        for e in read:
            made.append(e)
            progress.advance()
    return {
        "ids": np.concatenate([np.empty(0, np.int32), *(e.ids for e in made)]),
        "trained": np.concatenate([np.empty(0, bool), *(e.trained for e in made)]),
        "lengths": np.array([len(e.ids) for e in made], np.int64),
        "fingerprints": np.frombuffer(
            bytes.fromhex("".join(e.fingerprint for e in made)), np.uint8
        ).reshape(-1, 32),
    }


def _trace(case: Case, traces: Mapping[str, str] | None) -> str | None:
    return None if traces is None else traces[case.fingerprint]


def _example(
    case: Case, prompt: Prompt, tokenizer: Tokenizer, traces: Mapping[str, str] | None
) -> Example:
    try:
        return example(case, prompt, tokenizer, _trace(case, traces))
    except McrError as error:
        name = case.pmcid or case.fingerprint[:12]
        raise McrError(f"case {name} cannot be tokenized: {error}") from error
