"""The whole configuration, every field with its default and what it means.

A config file is Python with a `get_config()` that starts from `default()` and sets what differs.
Values are plain data; `check` refuses a field that is not here, so a typo never passes in silence.
"""

import datetime
import difflib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mcr_jax.errors import McrError, UsageError

# What a workdir's data, tokenizer and weights follow from: fixed once it has been worked in.
FROZEN = ("seed", "prompt", "data.source", "data.data_dir", "synthetic", "tokenizer", "model")
FROZEN += ("lora", "optim", "train")
# Of these, how the machine at hand does it, and how long to be patient: a run may go on under
# others. Not all leave its result as it was: patience and eval_every decide where it ends,
# eval_every and checkpoint_every which step is the best, accumulate what adapters drop.
THAWED = ("train.accumulate", "train.remat", "train.keep", "train.keep_best", "train.patience")
THAWED += ("train.eval_every", "train.checkpoint_every")

_MAX_SEED = 2**31 - 1  # what a 32-bit integer of jax holds
_COUNTS = (  # fields of which there is at least one
    *("tokenizer.vocab_size", "train.steps", "train.rows", "train.row_tokens", "train.keep"),
    "train.accumulate",
    *("train.eval_every", "train.checkpoint_every", "sample.n", "sample.max_tokens"),
    *("sample.prompt_tokens", "sample.slots", "sample.share", "score.resamples", "judge.attempts"),
    *("judge.concurrency", "judge.max_tokens", "judge.quote_words"),
    *("stitch.attempts", "stitch.max_tokens", "stitch.prompt_tokens", "stitch.concurrency"),
)
_RANGES = {  # smallest and largest value of a field
    "seed": (0, _MAX_SEED),
    "data.eval_cases": (0, float("inf")),
    "lora.rank": (0, 65_536),
    "lora.alpha": (1e-6, 1_000_000),
    "lora.dropout": (0, 0.999),
    "optim.learning_rate": (0, 1000),
    "optim.warmup_steps": (0, float("inf")),
    "optim.weight_decay": (0, 1000),
    "optim.clip_norm": (1e-9, float("inf")),
    "optim.b1": (0, 0.999999),
    "optim.b2": (0, 0.99999999),
    "train.epochs": (0, 10_000),
    "train.keep_best": (0, float("inf")),
    "train.patience": (0, float("inf")),
    "synthetic.train": (0, float("inf")),
    "synthetic.val": (0, float("inf")),
    "synthetic.test": (0, float("inf")),
    "sample.temperature": (0, float("inf")),
    "sample.top_k": (0, _MAX_SEED),
    "sample.tensor": (0, 1_000_000),
    "sample.top_p": (1e-6, 1),
    "stitch.temperature": (0, float("inf")),
    "stitch.top_p": (1e-6, 1),
    "stitch.coverage": (0, 1),
    "stitch.shortest": (0, 1),
    "stitch.longest": (1, 1000),
    "judge.recall_samples": (0, float("inf")),
    "judge.patience": (0, 86_400),
    **dict.fromkeys(("judge.timeout", "stitch.timeout"), (0.001, 86_400)),
    "judge.unresolved_limit": (0, 1),
    "score.confidence": (0.5, 0.9999),
    **dict.fromkeys(_COUNTS, (1, 10**9)),
}
_CHOICES = {  # of a tuple, each of its values
    "lora.targets": ("q", "k", "v", "o", "gate", "up", "down"),
    "model.dtype": ("float32", "bfloat16"),
    "optim.name": ("adamw", "adafactor", "lion", "muon"),
    "optim.mu_dtype": ("float32", "bfloat16"),
    "optim.schedule": ("cosine", "linear", "constant"),
    "train.compute": ("float32", "bfloat16"),
    "train.too_long": ("drop", "keep"),
    "train.traces": ("enumerated", "stitched"),
    "sample.checkpoint": ("newest", "best"),
    "score.answer": ("lenient", "strict"),
    "stitch.model": ("base", "sft", "gemini"),
    "sample.dtype": ("", "float32", "bfloat16"),
    "sample.kv_dtype": ("", "float32", "bfloat16", "int8"),
    "train.remat": ("none", "dots", "full"),
    "attention": ("auto", "xla", "cudnn", "splash"),
}


def default() -> ConfigDict:
    """Returns the default config; every stage reads its own section and `seed`."""
    c = ConfigDict()
    c.name = ""  # names the experiment in the report
    c.seed = 0  # every random choice below derives from it

    c.data = ConfigDict()
    c.data.source = ""  # PATH[,PATH] for `mcr build`; "synthetic" is the fictional clinic
    c.data.data_dir = ""  # TFDS data_dir; "" is TFDS's own default, "workdir" is WORKDIR/data
    c.data.eval_split = "test"
    c.data.eval_cases = 0  # evaluate the first so many; 0 is all

    c.synthetic = ConfigDict()  # sizes of the fictional clinic
    c.synthetic.train = 2000
    c.synthetic.val = 64
    c.synthetic.test = 80

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ""  # its folder; "" is model.folder, or trains one on the train split
    c.tokenizer.vocab_size = 2048  # of the trained one
    # The day that chat templates are told: one for all runs, or prompts would change overnight.
    c.tokenizer.date = "2024-07-26"

    c.model = ConfigDict()
    c.model.folder = ""  # in Hugging Face's format, to start from; the sizes below are then unused
    # A published model, whose shape `mcr train --plan` takes while no folder is named; folders must
    # be of its family, of any size. "any": a folder of any family must be named.
    c.model.shape = ""
    c.model.ignore = ()  # keys of its config.json to pass over although they are unknown here
    c.model.dtype = "float32"  # of the weights: float32 | bfloat16
    c.model.layers = 4
    c.model.width = 128
    c.model.heads = 4
    c.model.kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_width = 384
    c.model.rope_theta = 10_000.0
    c.model.norm_eps = 1e-6
    c.model.qk_norm = False  # RMSNorm of queries and keys per head
    c.model.tied = True  # one table for embedding and head

    c.lora = ConfigDict()  # low-rank adapters, which alone are trained then
    c.lora.rank = 0  # 0 has none and trains all weights
    c.lora.alpha = 32.0  # they count alpha / rank times
    c.lora.dropout = 0.0
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    c.lora.rslora = False  # alpha / sqrt(rank) instead

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw | adafactor | lion | muon
    c.optim.learning_rate = 1e-3
    c.optim.warmup_steps = 20
    c.optim.schedule = "cosine"  # after the warm-up: cosine | linear, both to a tenth, or constant
    c.optim.mu_dtype = "float32"  # of the mean of gradients: float32 | bfloat16
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95

    c.attention = "auto"  # backend: auto | xla | cudnn | splash; auto takes the device's best

    c.mesh = ConfigDict()  # devices per axis; -1 takes what is left
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1

    c.stitch = ConfigDict()  # statements to one fluent trace per case, which training may learn
    c.stitch.model = "base"  # who writes: base, the model before training | sft | gemini
    c.stitch.attempts = 3  # samples per case; once all have failed the audit, statements are joined
    c.stitch.temperature = 0.7
    c.stitch.top_p = 0.95
    c.stitch.max_tokens = 1024
    c.stitch.prompt_tokens = 2048  # longer prompts end as prompt_too_long
    c.stitch.coverage = 1.0  # least share of the statements that a trace makes
    c.stitch.shortest = 0.5  # least and most words of a trace, as multiples of the statements'
    c.stitch.longest = 2.0
    c.stitch.gemini = "gemini-3.5-flash-lite"  # which, where model is gemini
    c.stitch.thinking = ""  # of Gemini, as judge.thinking
    c.stitch.concurrency = 8  # calls under way at once, of gemini
    c.stitch.timeout = 60.0  # seconds per call, of gemini

    c.train = ConfigDict()
    c.train.traces = "enumerated"  # the target: statements as published | stitched, `mcr stitch`'s
    c.train.steps = 400
    c.train.epochs = 0.0  # when above 0, as many steps as so many passes over the data take
    c.train.rows = 16  # packed rows per step, over all devices
    c.train.row_tokens = 512
    c.train.too_long = (
        "drop"  # examples longer than a row: drop | keep, then rows grow to hold them
    )
    c.train.accumulate = 1  # parts that the rows of a step go through the devices in
    c.train.compute = "float32"  # of the forward pass: float32 | bfloat16; weights keep model.dtype
    c.train.remat = "none"  # computed again in the backward pass: none | dots | full
    c.train.eval_every = 100  # steps between validation losses
    c.train.checkpoint_every = 100
    c.train.keep = 2  # newest checkpoints kept
    c.train.keep_best = (
        0  # of those at which it was measured, with the lowest val loss, kept beside
    )
    c.train.patience = 0  # ends after so many val losses in a row that were no better; 0 never
    c.train.checkpoints = ""  # their folder, such as gs://BUCKET/RUN; "" is WORKDIR/checkpoints

    c.sample = ConfigDict()
    c.sample.models = ("base", "sft")  # base: before training; sft: the newest checkpoint
    c.sample.checkpoint = "newest"  # which sft is: newest | best, the one of the lowest val loss
    c.sample.n = 10  # completions of each case; more of them later draws the new ones only
    c.sample.temperature = 0.7  # 0 takes the likeliest token
    c.sample.top_k = 0  # so many of the likeliest tokens are drawn from; 0 is all
    c.sample.top_p = 1.0  # and of these the likeliest of so much probability
    c.sample.stop = ()  # texts such as "</answer>" that end a completion, which keeps them
    c.sample.max_tokens = 256
    c.sample.prompt_tokens = 512  # longer prompts end as prompt_too_long
    # Completions that each copy of the model writes at a time, in eights; fewer where a device's
    # memory is short. Throughput grows with them. They change no completion, but for what rounding
    # does on an accelerator.
    c.sample.slots = 64
    c.sample.share = 10  # most of them that read one prompt's keys and values together
    c.sample.dtype = ""  # of the weights: float32 | bfloat16; "" is train.compute
    c.sample.kv_dtype = ""  # of keys and values: float32 | bfloat16 | int8; "" is the weights'
    # Devices that hold one copy of the model together; all devices are used, by as many copies as
    # that makes. 0 takes the fewest on which sample.slots fit.
    c.sample.tensor = 0

    c.judge = ConfigDict()
    c.judge.name = "offline"  # offline | gemini
    c.judge.model = "gemini-3.5-flash-lite"
    # Thinking of a Gemini judge: a level (minimal | low | medium | high | xhigh) for Gemini 3 and
    # later, a number of tokens for Gemini 2.5; "" is the service's default.
    c.judge.thinking = ""
    c.judge.max_tokens = 16_384  # per reply, thoughts included; a truncated one gets twice as many
    c.judge.concurrency = 8  # most calls in flight; fewer while the service is overloaded
    c.judge.recall_samples = 1  # traces per case judged for recall: samples 0 … this-1
    c.judge.timeout = 60.0  # seconds per call
    c.judge.attempts = 3  # tries per verdict and call of `mcr judge`
    c.judge.patience = 600.0  # seconds to wait for a service that is down, by `mcr stitch` too
    c.judge.unresolved_limit = 0.01  # more verdicts missing than this share: exit status 1
    c.judge.quote_words = 4  # shortest quote that can verify a statement with more words
    c.judge.version = ""  # the model_version that counts, where the service reported several

    c.score = ConfigDict()
    c.score.answer = "lenient"  # how answers are read: lenient | strict, one <answer> pair only
    c.score.resamples = 10_000
    c.score.confidence = 0.95

    c.prompt = "diagnose"  # the prompt that trains and samples: the name of one of the shipped
    c.prompts = ""  # folder whose NAME.txt files replace the shipped prompts
    return c


def check(config: ConfigDict, origin: str) -> ConfigDict:
    """Returns `default()` overlaid with `config`, locked.

    Raises:
      UsageError: `config` has a field that `default()` lacks, or a value of another type or out of
        range. `origin` names the file in the message.
    """
    resolved = default()
    _overlay(resolved, config, origin, "")
    for name, value in fields(resolved):
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{origin}: config field {name} is a finite number, not {value}")
        low, high = _RANGES.get(name, (None, None))
        if low is not None and not low <= value <= high:
            to = "at least {}" if high == float("inf") else "{} to {:,}"
            raise UsageError(
                f"{origin}: config field {name} is {to.format(low, high)}, not {value}"
            )
        if name in _CHOICES:
            _check_choice(name, value, origin)
    try:
        datetime.date.fromisoformat(resolved.tokenizer.date)
    except ValueError:
        raise UsageError(
            f"{origin}: config field tokenizer.date is a day such as 2024-07-26, "
            f"not {resolved.tokenizer.date!r}"
        ) from None
    if resolved.model.folder:
        resolved.model.folder = os.path.normpath(resolved.model.folder)
    models = resolved.sample.models
    if not models or len(set(models)) != len(models):
        raise UsageError(
            f"{origin}: config field sample.models names each model once, not {models}"
        )
    _check_stop(resolved.sample.stop, origin)
    return resolved.lock()


def judge_name(config: ConfigDict) -> str:
    """The judge as it stands in the ledger: "offline", or kind and model as "gemini:MODEL"."""
    kind = config.judge.name
    return kind if kind == "offline" else f"{kind}:{config.judge.model}"


def sampling_dtype(config: ConfigDict) -> str:
    """The dtype that weights are sampled in: config.sample.dtype, or "" what training computes in.

    Weights that are kept in bfloat16 are not made larger unless sample.dtype says so.
    """
    if config.sample.dtype:
        return config.sample.dtype
    return "bfloat16" if config.model.dtype == "bfloat16" else config.train.compute


def load(path: Path) -> ConfigDict:
    """The config recorded in a workdir. Raises McrError if the file is broken."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"), object_hook=_tuples)
    except (OSError, ValueError) as error:
        raise McrError(f"{path}: unreadable: {error}") from error
    except RecursionError as error:
        raise McrError(f"{path}: unreadable: nested too deeply") from error
    if not isinstance(recorded, dict):
        raise McrError(f"{path}: unreadable: not a JSON object")
    return check(ConfigDict(recorded), str(path))


def frozen(config: ConfigDict) -> dict[str, Any]:
    """The fields that later calls in the same workdir may not change, by dotted name."""
    return {
        name: value
        for name, value in fields(config)
        if any(name == part or name.startswith(f"{part}.") for part in FROZEN)
        and name not in THAWED
    }


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted name, value) of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_field(name: str) -> None:
    """Raises UsageError unless `name` is the dotted name of a field."""
    known = [field for field, _ in fields(default())]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown config field {name}{hint}")


def _check_choice(name: str, value: str | tuple[str, ...], origin: str) -> None:
    known = _CHOICES[name]
    if isinstance(value, tuple):
        right = value and len(set(value)) == len(value) and set(value) <= set(known)
        says = "some of {}, each once"
    else:
        right, says = value in known, "one of {}"
    if not right:
        raise UsageError(
            f"{origin}: config field {name} is {says.format(', '.join(known))}, not {value!r}"
        )


def _check_stop(texts: tuple[str, ...], origin: str) -> None:
    # U+FFFD stands for half a character, which the next token may complete.
    if len(set(texts)) != len(texts) or not all(
        isinstance(text, str) and text and "\ufffd" not in text for text in texts
    ):
        raise UsageError(
            f"{origin}: config field sample.stop is some texts, each once, none of them empty or "
            f"with U+FFFD in it, not {texts!r}"
        )


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def _overlay(target: ConfigDict, source: ConfigDict, origin: str, prefix: str) -> None:
    for field, value in source.items():
        name = prefix + field
        if field not in target:
            close = difflib.get_close_matches(field, list(target.keys()), 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UsageError(f"{origin}: unknown config field {name}{hint}")
        if isinstance(target[field], ConfigDict) != isinstance(value, ConfigDict):
            raise UsageError(
                f"{origin}: config field {name} is a section or a value, not the other"
            )
        if isinstance(value, ConfigDict):
            _overlay(target[field], value, origin, name + ".")
            continue
        try:
            if value is None or isinstance(value, bool) != isinstance(target[field], bool):
                raise TypeError  # ConfigDict takes None for anything and True for 1
            if isinstance(value, tuple | list) and not all(isinstance(v, str) for v in value):
                raise TypeError  # all tuples are of texts
            target[field] = value
        except TypeError as error:
            raise UsageError(
                f"{origin}: config field {name} takes {type(target[field]).__name__}, not {value!r}"
            ) from error
