"""Trains a small decoder on a fictional clinic, on a laptop's CPU: the demo.

    mcr demo --workdir=runs/demo

Nothing here is medicine. Research use, not for patient care.
"""

from ml_collections import ConfigDict

from mcr_jax import config


def get_config() -> ConfigDict:
    """Returns the demo's config."""
    c = config.default()
    c.name = "demo: a fictional clinic"
    c.prompt = "diagnose_brief"
    c.data.source = "synthetic"
    c.data.data_dir = "workdir"
    c.synthetic.train = 6000
    c.synthetic.test = 64
    c.tokenizer.vocab_size = 1536

    c.model.layers = 3
    c.model.width = 128
    c.model.heads = 4
    c.model.kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_width = 256
    c.model.qk_norm = True
    c.model.tied = False

    c.optim.learning_rate = 6e-3
    c.stitch.judge = "offline"
    c.train.steps = 700
    c.train.rows = 4
    c.train.row_tokens = 384
    c.train.eval_every = 100
    c.train.checkpoint_every = 100

    c.sample.temperature = 1.0
    c.sample.prompt_tokens = 144
    c.sample.max_tokens = 144
    c.sample.slots = 160
    c.judge.recall_samples = c.sample.n
    return c
