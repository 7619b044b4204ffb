"""Every field of the configuration: default, meaning, allowed values, and when it is frozen.

A record here is the only place where a field is declared: `config.default()`, `config.check()`,
`config.frozen()` and `mcr configs --fields` read it.
"""

import dataclasses
import datetime
import math
from collections.abc import Callable
from typing import Any

# Artifacts of a workdir that freeze fields, in the order in which stages make them. An artifact
# also freezes the fields of those before it. "results": a checkpoint, or sampled completions.
FREEZING_ARTIFACTS = ("dataset", "tokenizer", "traces", "results")
RESUME_MUTABLE = ""  # a run in the same workdir may resume with another value

_INF = math.inf
_MAX_INT32 = 2**31 - 1
_MAX_WAIT_S = 86_400
_DTYPES = ("float32", "bfloat16")
_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the configuration.

    Attributes:
      default: its value unless set; values are of the same type. An integer may stand for a float.
      meaning: what it does, with its unit.
      within: smallest and largest value of a number. Floats are always finite.
      choices: the texts allowed; a tuple holds some of them, each once.
      rule: a test of the value, and the words for what passes it.
      frozen: the artifact that freezes it, or RESUME_MUTABLE; `_declare` sets it.
      by_content: a training run is identified by a digest of what it names, not by its value.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    within: tuple[float, float] = (-_INF, _INF)
    choices: tuple[str, ...] = ()
    rule: tuple[Callable[[Any], bool], str] | None = None
    frozen: str = RESUME_MUTABLE
    by_content: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether `value`, of the right type, is allowed."""
        if self.rule:
            return self.rule[0](value)
        if self.choices and isinstance(value, tuple):
            return _each_once(value) and set(value) <= set(self.choices)
        if self.choices:
            return value in self.choices
        if isinstance(value, int | float):
            return math.isfinite(value) and self.within[0] <= value <= self.within[1]
        return True

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.rule:
            return self.rule[1]
        if self.choices:
            listed = ", ".join(choice or '""' for choice in self.choices)
            several = isinstance(self.default, tuple)
            return f"some of {listed}, each once" if several else f"one of {listed}"
        low, high = self.within
        if high < _INF:
            return f"{low:,} to {high:,}"
        kinds = {str: "a text", tuple: "texts", bool: "True or False", int: "an integer"}
        kind = kinds.get(type(self.default), "a finite number")
        return f"{kind} of at least {low}" if low > -_INF else kind


def _each_once(values: tuple[str, ...]) -> bool:
    return bool(values) and len(set(values)) == len(values)


def _each_once_or_none(values: tuple[str, ...]) -> bool:
    return len(set(values)) == len(values)


def _is_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _each_once_or_none(texts: tuple[str, ...]) -> bool:
    return len(set(texts)) == len(texts)


def _are_stops(texts: tuple[str, ...]) -> bool:
    # U+FFFD stands for half a character, which the next token may complete.
    return len(set(texts)) == len(texts) and all(text and "\ufffd" not in text for text in texts)


def _count(default: int, meaning: str) -> Field:
    return Field(default, meaning, within=(1, 10**9))


def _choice(meaning: str, *choices: str) -> Field:
    return Field(choices[0], meaning, choices=choices)


FIELDS: dict[str, Field] = {}  # by dotted name


def _declare(section: str, frozen: str = RESUME_MUTABLE) -> Callable[..., None]:
    """Returns a function that adds the fields of a section, frozen by one artifact."""

    def add(**fields: Field) -> None:
        for name, field in fields.items():
            dotted = f"{section}.{name}" if section else name
            FIELDS[dotted] = dataclasses.replace(field, frozen=frozen)

    return add


# --8<-- [start:fields]
_declare("", "tokenizer")(prompt=Field("diagnose", "name of the prompt of training and sampling"))
_declare("", "dataset")(
    seed=Field(0, "every random choice derives from it", within=(0, _MAX_INT32))
)
_declare("")(
    name=Field("", "name of the experiment in the report"),
    prompts=Field("", "folder whose NAME.txt files replace the shipped prompts"),
    prices=Field("", "TOML file with prices besides those of mcr_jax/prices.toml, in its form"),
    attention=_choice(
        "attention backend; auto takes the best of the device", "auto", "xla", "cudnn", "splash"
    ),
)
_declare("")(
    endpoints=Field(
        (),
        "servers of chat completions, each NAME=URL, NAME=URL KEY_VARIABLE or either with "
        "service_tier=TIER: then NAME:MODEL is a model in sample.models and judge.models, and NAME "
        "a judge.name",
        rule=(_each_once_or_none, "some NAME=URL, each once"),
    ),
)
_declare("data", "dataset")(
    source=Field(
        "", 'PATH[,PATH] for `mcr build`; "synthetic" is the fictional clinic', by_content=True
    ),
    data_dir=Field(
        "", 'TFDS data_dir; "" is the default of TFDS, "workdir" is WORKDIR/data', by_content=True
    ),
)
_declare("data")(
    eval_split=Field("test", "split that is sampled, judged and scored"),
    eval_cases=Field(0, "evaluates the first cases of that split; 0 is all", within=(0, _INF)),
)
_declare("synthetic", "dataset")(
    train=Field(2000, "training cases of the fictional clinic", within=(0, _INF)),
    val=Field(64, "validation cases of the fictional clinic", within=(0, _INF)),
    test=Field(80, "test cases of the fictional clinic", within=(0, _INF)),
)
_declare("tokenizer", "tokenizer")(
    path=Field(
        "",
        'folder of the tokenizer; "" is model.folder, or trains one on the train split',
        by_content=True,
    ),
    vocab_size=_count(2048, "vocabulary size of a tokenizer that is trained"),
    date=Field(
        "2024-07-26",
        "date that chat templates show; a fixed one keeps prompts equal from day to day",
        rule=(_is_day, "a day such as 2024-07-26"),
    ),
)
_declare("model", "traces")(
    folder=Field("", "model in Hugging Face's format to start from; sizes below are then unused"),
    shape=Field(
        "",
        "published model that `mcr train --plan` assumes without a folder, and whose family "
        'the folder must be of; "any" accepts every family',
    ),
    ignore=Field((), "unknown keys of the folder's config.json to ignore"),
    dtype=_choice("dtype of the weights", *_DTYPES),
    layers=Field(4, "number of decoder layers"),
    width=Field(128, "size of the residual stream"),
    heads=Field(4, "query heads per layer"),
    kv_heads=Field(2, "key and value heads per layer"),
    head_dim=Field(32, "size of a head"),
    mlp_width=Field(384, "hidden size of the MLP"),
    rope_theta=Field(10_000.0, "base of the rotary frequencies"),
    norm_eps=Field(1e-6, "epsilon of RMSNorm"),
    qk_norm=Field(False, "RMSNorm of queries and keys per head"),
    tied=Field(True, "one table for embedding and head"),
)
# low-rank adapters: only they are trained
_declare("lora", "results")(
    rank=Field(0, "rank of the adapters; 0 trains all weights", within=(0, 65_536)),
    alpha=Field(32.0, "adapters are scaled by alpha / rank", within=(1e-6, 1_000_000)),
    dropout=Field(0.0, "dropout rate of the adapters' input", within=(0, 0.999)),
    targets=Field(_PROJECTIONS, "projections with adapters", choices=_PROJECTIONS),
    rslora=Field(False, "scales by alpha / sqrt(rank) instead"),
)
_declare("optim", "results")(
    name=Field("adamw", "optimizer: a name in mcr_jax.train.optimizer.OPTIMIZERS"),
    learning_rate=Field(1e-3, "peak of the schedule", within=(0, 1000)),
    warmup_steps=Field(20, "steps of linear warm-up", within=(0, _INF)),
    schedule=Field("cosine", "after the warm-up: a name in mcr_jax.train.optimizer.SCHEDULES"),
    mu_dtype=_choice("dtype of the mean of gradients", *_DTYPES),
    weight_decay=Field(0.1, "decoupled weight decay", within=(0, 1000)),
    clip_norm=Field(1.0, "largest global norm of the gradients", within=(1e-9, _INF)),
    b1=Field(0.9, "decay of the mean of gradients", within=(0, 0.999999)),
    b2=Field(0.95, "decay of the mean of squares", within=(0, 0.99999999)),
)
_declare("mesh")(
    data=Field(1, "devices that replicate the weights; -1 takes what is left"),
    fsdp=Field(-1, "devices that shard the weights and the batch; -1 takes what is left"),
    tensor=Field(1, "devices that shard each layer; -1 takes what is left"),
)
# statements to one fluent trace per case
_declare("stitch")(
    model=_choice(
        "writer of the traces: base is the model before training", "base", "sft", "gemini"
    ),
    attempts=_count(3, "most samples per case; if all fail, statements are joined"),
    temperature=Field(0.7, "sampling temperature", within=(0, _INF)),
    top_p=Field(0.95, "nucleus sampling", within=(1e-6, 1)),
    max_tokens=_count(1024, "most tokens per trace"),
    prompt_tokens=_count(2048, "longer prompts end as prompt_too_long"),
    shortest=Field(0.5, "fewest words of a trace per word of the statements", within=(0, 1)),
    longest=Field(2.0, "most words of a trace per word of the statements", within=(1, 1000)),
    judge=_choice(
        "judge of whether a trace keeps the meaning of the statements, set up as config.judge: "
        'offline is for the fictional clinic; "" does not judge',
        *("", "offline", "gemini", "openai"),
    ),
    coverage=Field(
        1.0, "smallest share of the statements that a trace keeps, by that judge", within=(0, 1)
    ),
    gemini=Field("gemini-3.5-flash-lite", "model where stitch.model is gemini"),
    thinking=Field("", "thinking of that model, as judge.thinking"),
    concurrency=_count(8, "most calls to Gemini in flight"),
    timeout=Field(60.0, "seconds per call to Gemini", within=(0.001, _MAX_WAIT_S)),
)
_declare("train", "results")(
    traces=Field(
        "enumerated",
        "training target: statements as published, or stitched by `mcr stitch`",
        choices=("enumerated", "stitched"),
        by_content=True,
    ),
    steps=_count(400, "optimizer steps"),
    epochs=Field(
        0.0,
        "passes over the data, which then set the steps; 0 takes train.steps",
        within=(0, 10_000),
    ),
    rows=_count(16, "packed rows per step, over all devices"),
    row_tokens=_count(512, "tokens per row"),
    too_long=_choice(
        "examples longer than a row: drop reports them, keep makes rows longer", "drop", "keep"
    ),
    compute=_choice("dtype of the forward pass; weights keep model.dtype", *_DTYPES),
    checkpoints=Field(
        "",
        'folder of the checkpoints, such as gs://BUCKET/RUN; "" is WORKDIR/checkpoints',
        by_content=True,
    ),
)
# Not all of them leave the result unchanged: patience and eval_every decide where training ends,
# eval_every and checkpoint_every which checkpoint is the best, accumulate the dropout masks.
_declare("train")(
    accumulate=_count(1, "gradient accumulation steps"),
    remat=_choice("activations recomputed in the backward pass", "none", "dots", "full"),
    eval_every=_count(100, "steps between validation losses"),
    checkpoint_every=_count(100, "steps between checkpoints"),
    keep=_count(2, "newest checkpoints kept"),
    keep_best=Field(0, "checkpoints of lowest validation loss kept as well", within=(0, _INF)),
    patience=Field(
        0,
        "early stopping: evaluations without improvement before training ends; 0 disables",
        within=(0, _INF),
    ),
)
_declare("sample")(
    models=Field(
        ("base", "sft"),
        "models that answer, each NAME=SPEC or SPEC: base (before training), sft (a checkpoint), "
        "sft@STEP, hf:FOLDER, gemini:MODEL, openai:MODEL, file:COMPLETIONS.jsonl",
        rule=(_each_once, "some models, each once"),
    ),
    checkpoint=_choice("checkpoint of sft: newest, or best by validation loss", "newest", "best"),
    n=_count(10, "completions per case; a larger value later samples only the new ones"),
    temperature=Field(0.7, "sampling temperature; 0 takes the most likely token", within=(0, _INF)),
    top_k=Field(
        0, "samples from the k most likely tokens; 0 disables top-k", within=(0, _MAX_INT32)
    ),
    top_p=Field(
        1.0,
        "samples from the most likely tokens of this total probability; 1 disables top-p",
        within=(1e-6, 1),
    ),
    stop=Field(
        (),
        'texts such as "</answer>" that end a completion, which keeps them',
        rule=(_are_stops, "some texts, each once, none of them empty or with U+FFFD in it"),
    ),
    max_tokens=_count(256, "most tokens per completion"),
    prompt_tokens=_count(512, "longer prompts end as prompt_too_long"),
    slots=_count(
        64,
        "completions that a replica decodes at a time, a multiple of 8; fewer if memory is short. "
        "More raise throughput and change no completion beyond rounding",
    ),
    share=_count(10, "most slots that share the KV cache of one prompt"),
    dtype=_choice('dtype of the weights; "" is train.compute', "", *_DTYPES),
    kv_dtype=_choice('dtype of the KV cache; "" is that of the weights', "", *_DTYPES, "int8"),
    tensor=Field(
        0,
        "devices per replica; 0 takes the fewest on which sample.slots fit",
        within=(0, 1_000_000),
    ),
    thinking=Field("", "thinking of a model behind a network, as judge.thinking"),
    thoughts=Field(False, "keeps Gemini's summaries of its thoughts in the trace"),
    concurrency=_count(8, "most calls in flight to a model behind a network"),
    timeout=Field(
        600.0, "seconds per call to a model behind a network", within=(0.001, _MAX_WAIT_S)
    ),
    batch=Field(
        False,
        "models behind a network answer in batches: half the price, and hours of waiting; Gemini "
        "and OpenAI have them",
    ),
)
_declare("judge")(
    name=Field("offline", "offline | gemini | openai (any server of chat completions)"),
    model=Field("gemini-3.5-flash-lite", "model of a judge behind a network"),
    models=Field(
        (),
        "judges in place of judge.name and judge.model, each SPEC or NAME=SPEC: offline, "
        "gemini:MODEL, openai:MODEL, ENDPOINT:MODEL, a pair diagnosis:MODEL+reasons:MODEL, or "
        "paper, the pair of the paper; the first is the headline, the others are agreement",
        rule=(_each_once_or_none, "some judges, each once"),
    ),
    repeat=Field(
        1,
        "verdicts of each judge on each completion; the headline takes their majority",
        within=(1, 100),
    ),
    thinking=Field(
        "",
        "thinking of Gemini: minimal | low | medium | high | xhigh for Gemini 3 and later, a "
        'number of tokens for 2.5; "" is the default of the service',
    ),
    max_tokens=_count(
        16_384, "most tokens per reply, thoughts included; doubled after a truncated one"
    ),
    concurrency=_count(8, "most calls in flight; fewer while the service is overloaded"),
    recall_samples=Field(
        1, "traces per case judged for recall: samples 0 to this - 1", within=(0, _INF)
    ),
    timeout=Field(60.0, "seconds per call", within=(0.001, _MAX_WAIT_S)),
    attempts=_count(3, "most tries per verdict and call of `mcr judge`"),
    patience=Field(
        600.0,
        "seconds to wait for a service that is down, also in `mcr stitch`",
        within=(0, _MAX_WAIT_S),
    ),
    unresolved_limit=Field(
        0.01, "exit status 1 if a larger share of verdicts is missing", within=(0, 1)
    ),
    quote_words=_count(4, "shortest quote, in words, that can verify a longer statement"),
    batch=Field(False, "a judge behind a network answers in batches, as in sample.batch"),
    version=Field(
        "",
        "model_version of the first judge that counts, where the service reported several; "
        "DIAGNOSIS+REASONS for a pair",
    ),
)
# of a whole workdir, over all runs; a run stops before the call that may go over
_declare("budget")(
    dollars=Field(0.0, "most USD paid to services; 0 is no limit", within=(0, _INF)),
    requests=Field(0, "most calls that services answer; 0 is no limit", within=(0, 10**12)),
    tokens=Field(0, "most tokens, in and out; 0 is no limit", within=(0, 10**15)),
)
_declare("score")(
    answer=_choice(
        "how answers are read: strict takes exactly one <answer> pair", "lenient", "strict"
    ),
    resamples=_count(10_000, "bootstrap resamples"),
    confidence=Field(0.95, "level of the intervals", within=(0.5, 0.9999)),
)
# --8<-- [end:fields]
