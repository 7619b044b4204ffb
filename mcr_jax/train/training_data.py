"""Cases to batches of token ids: tokenized, fitted to rows, packed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.loader import Batch, Batches, fixed_batches
from mcr_jax.data.tokens import Tokens, fit, tokenize
from mcr_jax.errors import McrError, UsageError
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.prompts import Prompt
from mcr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of training besides the config.

    Attributes:
      shape: of the decoder; with `lora` only its adapters are trained.
      cases: the splits "train" and "val"; without "val" cases there is no validation loss.
      tokenizer: with the ids of the model.
      prompt: the question that each case is put in.
      traces: the reasoning to learn, by case fingerprint; None for the cases' own statements.
    """

    shape: DecoderConfig
    cases: Mapping[str, Sequence[Case]]
    tokenizer: Tokenizer
    prompt: Prompt
    traces: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Batches of one run.

    Attributes:
      batches: of the train split, by step.
      validation: of the val split; empty without a validation loss.
      dropped: (case fingerprint, tokens) of examples longer than a row.
      steps: at which the run ends.
    """

    batches: Batches
    validation: Sequence[Batch]
    dropped: Sequence[tuple[str, int]]
    steps: int


def prepare(config: ConfigDict, inputs: Inputs, folder: Path) -> TrainingData:
    """Tokenizes and packs the cases, or reads the result from `folder`; prints how they fit.

    Raises:
      McrError: no example fits a row, a token id is beyond the model's vocabulary, or `folder`
        cannot be written.
      UsageError: config.train needs a validation loss and no "val" case fits a row.
    """
    c, vocab_size = config.train, inputs.shape.vocab_size

    def tokens(split: str) -> Tokens:
        cases, i = inputs.cases[split], inputs
        made = tokenize(cases, i.prompt, i.tokenizer, folder, i.traces)
        if made.highest >= vocab_size:
            raise McrError(
                f"the tokenizer gives id {made.highest}, and the model has {vocab_size} ids"
            )
        return made

    fitted = fit(tokens("train"), c.row_tokens, c.too_long)
    batches = Batches(fitted.tokens, c.rows, fitted.row_tokens, config.seed, folder)
    steps = batches.steps(c.epochs) if c.epochs else c.steps
    console.say(
        f"  {len(fitted.tokens)} examples, {batches.filled:.3f} of the places in rows of "
        f"{fitted.row_tokens} filled, {batches.epoch(steps):.1f} epochs in {steps} steps"
    )
    if fitted.dropped:
        longest = max(length for _, length in fitted.dropped)
        console.say(
            f"  {len(fitted.dropped)} longer than train.row_tokens={c.row_tokens} are left out, "
            f"the longest of {longest} tokens; train.too_long=keep keeps them"
        )
    validation = []
    if inputs.cases["val"]:
        validation = _validation(tokens("val"), c.rows, fitted.row_tokens)
    if not validation and (needing := [n for n in ("keep_best", "patience") if c[n]]):
        names = " and ".join(f"config.train.{name}={c[name]}" for name in needing)
        raise UsageError(
            f"{names} need a validation loss, and no val case fits a row: set 0, and "
            "config.sample.checkpoint to newest"
        )
    return TrainingData(batches=batches, validation=validation, dropped=fitted.dropped, steps=steps)


def _validation(tokens: Tokens, rows: int, row_tokens: int) -> list[Batch]:
    """Batches of the examples that fit a row; prints how many do not."""
    fits = tokens.lengths <= row_tokens
    if not fits.all():
        console.say(
            f"  {(~fits).sum()} of {len(tokens)} val cases are longer than a row of {row_tokens} "
            "tokens and do not count in the validation loss"
        )
    if not fits.any():
        return []
    return fixed_batches(tokens.select(np.flatnonzero(fits)), rows, row_tokens)
