"""Prompt, tokenizer and decoder shape of a config, made in one place for runs and for plans."""

import dataclasses
import datetime
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.errors import UsageError
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir

if TYPE_CHECKING:
    from mcr_jax.model.shape import DecoderConfig
    from mcr_jax.text.tokenizer import Tokenizer


def model_folder(config: ConfigDict) -> str:
    """Returns config.model.folder; "" for a model with random weights.

    Raises:
      UsageError: the folder is missing, or not of the family of config.model.shape.
    """
    folder, name = config.model.folder, config.model.shape
    if not folder:
        if name:  # random weights would stand for a published model
            raise UsageError(
                "this config needs the weights of a model: name their folder with "
                "--config.model.folder=DIR"
            )
        return ""
    place = local_folder(folder)
    if not place.is_dir():
        raise UsageError(
            f"config.model.folder={folder}: no such folder; download it first, e.g. "
            f"`hf download Qwen/Qwen2.5-7B-Instruct --local-dir={folder}`"
        )
    if not (place / "config.json").is_file():
        raise UsageError(
            f"config.model.folder={folder} holds no config.json: name the folder of a model in "
            "Hugging Face's format"
        )
    _refuse_other_family(config, place)
    return str(place)


def _refuse_other_family(config: ConfigDict, folder: Path) -> None:
    from mcr_jax.model.families import model_type
    from mcr_jax.model.hf import config_json, published

    name = config.model.shape
    if name in ("", published.ANY):
        return
    wanted = model_type(published.shape(name))
    found = model_type(config_json.read(folder, config.model.ignore))
    if found != wanted:
        raise UsageError(
            f"config.model.folder={folder} holds a model of type {found}, and this config is "
            f"for {wanted}: choose another with --config (`mcr configs` lists them), or add "
            "--config.model.shape=any"
        )


def tokenizer(
    config: ConfigDict, workdir: Workdir, texts: Callable[[], Iterable[str]]
) -> "Tokenizer":
    """Returns the tokenizer of config.tokenizer.path or config.model.folder, or trains one.

    Args:
      config: read in the sections tokenizer and model.
      workdir: keeps a tokenizer that was trained.
      texts: what it is trained on; called only if it is.
    """
    from mcr_jax.text.tokenizer import FILE, Tokenizer

    folder = model_folder(config)
    if given := config.tokenizer.path or folder:
        today = datetime.datetime.fromisoformat(config.tokenizer.date)
        return Tokenizer.load(local_folder(given), now=today)
    if not (workdir.tokenizer / FILE).exists():
        trained = Tokenizer.train(texts(), config.tokenizer.vocab_size)
        if not workdir.writes:  # the process that writes trains the same one
            return trained
        trained.save(workdir.tokenizer)
        console.say(f"tokenizer: {trained.vocab_size} pieces learned from the train split")
    return Tokenizer.load(workdir.tokenizer)


def decoder_shape(config: ConfigDict, vocab_size: int = 0) -> "DecoderConfig":
    """Returns the decoder of config.model: of its folder, a published shape, or the sizes given.

    Args:
      config: read in the sections model, lora and train, and `attention`.
      vocab_size: of a decoder whose sizes are given; 0 is config.tokenizer.vocab_size.

    Raises:
      McrError: the folder cannot be read.
      UsageError: the shape is unknown, or the sizes are impossible.
    """
    from mcr_jax.model.hf import config_json, published
    from mcr_jax.model.shape import DecoderConfig, LoraConfig, Rope

    sizes, lora = config.model.to_dict(), config.lora.to_dict()
    folder, name = sizes.pop("folder"), sizes.pop("shape")
    ignore, theta = sizes.pop("ignore"), sizes.pop("rope_theta")
    chosen = {"attention": config.attention, "remat": config.train.remat}
    chosen["dtype"] = sizes.pop("dtype")
    try:
        chosen["lora"] = LoraConfig(**lora) if lora["rank"] else None
        if folder:
            return dataclasses.replace(config_json.read(local_folder(folder), ignore), **chosen)
        if name:
            return dataclasses.replace(published.shape(name), **chosen)
        scale = sizes["width"] ** 0.5  # a table drawn at width^-0.5 gives vectors of unit size
        return DecoderConfig(
            vocab_size=vocab_size or config.tokenizer.vocab_size,
            rope=Rope(theta=theta),
            embedding_scale=scale,
            **chosen,
            **sizes,
        )
    except ValueError as error:
        raise UsageError(f"config: {error}") from error
