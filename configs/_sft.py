"""Builds the fine-tuning configs of published models."""

from ml_collections import ConfigDict

from mcr_jax import config
from mcr_jax.configs._benchmark import measure
from mcr_jax.errors import UsageError

ARGS = ("full", "lora")


def sft(arg: str, *, name: str, shape: str, rate: float, lora_rate: float) -> ConfigDict:
    """Returns a config for fine-tuning on MedCaseReasoning, sampled and judged as the benchmark.

    Args:
      arg: "full" trains all weights in float32; "lora" trains adapters on weights in bfloat16. Both
        compute in bfloat16.
      name: name of the experiment, without a size: folders of every size are accepted.
      shape: one of `mcr_jax.model.hf.published`, for --plan without a folder; the folder must be of
        its family.
      rate, lora_rate: peak learning rates.

    Raises:
      UsageError: `arg` is neither.
    """
    if arg not in ARGS:
        raise UsageError(f"the config takes {' or '.join(ARGS)} after its colon, not {arg!r}")
    lora = arg == "lora"
    c = config.default()
    c.name = f"{name}, {'LoRA' if lora else 'all weights'}"
    c.model.shape = shape
    c.model.dtype = "bfloat16" if lora else "float32"
    if lora:
        c.lora.rank = 32
        c.lora.alpha = 64.0
        c.lora.dropout = 0.05

    c.optim.learning_rate = lora_rate if lora else rate
    c.optim.weight_decay = 0.0 if lora else 0.1

    # 13,092 cases of about 950 tokens fill about 3,100 rows: 194 steps to an epoch.
    c.train.epochs = 3.0
    c.train.rows = 16
    c.train.row_tokens = 4096
    c.train.compute = "bfloat16"
    c.train.remat = "full"
    c.train.eval_every = 97
    c.train.checkpoint_every = 97
    c.train.keep = 1
    c.train.keep_best = 1

    c.sample.checkpoint = "best"
    measure(c, max_tokens=1536)
    return c
