"""Transformers loads the folders that are saved here, and every logit agrees; run where installed.

`make reference` installs it in .venv-reference, apart from everything else.
"""

import dataclasses
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
from flax import nnx

from mcr_jax.model import hf, lora, store

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(
    os.environ.get("MCR_REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)
SHAPES = json.loads((tiny_hf.GOLDEN / "shapes.json").read_text())

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="transformers is not installed: make reference"
)


def run(script: str, *args: object) -> None:
    done = subprocess.run(
        [PYTHON, pathlib.Path(__file__).with_name(script), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def logits(model) -> np.ndarray:
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    return np.asarray(forward(params, jnp.asarray(tiny_hf.tokens())))


def test_transformers_loads_what_is_saved_here_and_agrees_on_every_logit(tmp_path):
    models = {}
    for number, variant in enumerate(tiny_hf.VARIANTS):
        made = tmp_path / "in" / variant
        tensors = tiny_hf.weights(variant, SHAPES[variant])
        tiny_hf.write(made, tiny_hf.VARIANTS[variant], tensors)
        models[variant] = hf.load(made)
        file_bytes = hf.FILE_BYTES if number % 2 else 30_000
        hf.save(models[variant], tmp_path / variant, file_bytes=file_bytes)
    run("reference_logits.py", *(tmp_path / variant for variant in models))
    for variant, model in models.items():
        want = np.load(tmp_path / variant / "logits.npy")
        assert np.abs(logits(model) - want).max() < 1e-4, variant


def test_peft_loads_the_adapters_that_are_saved_here_and_agrees_on_every_logit(tmp_path):
    models, rng = {}, np.random.default_rng(0)
    for variant in ("llama3", "qwen2", "qwen3_tied", "gemma3", "phi3"):
        made = tmp_path / variant
        tensors = tiny_hf.weights(variant, SHAPES[variant])
        model = hf.load(tiny_hf.write(made, tiny_hf.VARIANTS[variant], tensors))
        config = lora.LoraConfig(
            rank=4, alpha=6.0, targets=("q", "v", "o", "down"), rslora=variant == "phi3"
        )
        graph, adapters, frozen = lora.split(lora.add(model, config, 0))
        adapters = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, "f4"), adapters)
        models[variant] = nnx.merge(graph, adapters, frozen)
        lora.save(models[variant], made / "adapters")
    run("reference_logits.py", *(tmp_path / variant for variant in models))
    for variant, model in models.items():
        want = np.load(tmp_path / variant / "logits.npy")
        assert np.abs(logits(model) - want).max() < 1e-4, variant
        assert np.abs(logits(lora.merge(model)) - want).max() < 1e-4, variant


def test_transformers_computes_what_a_decoder_made_here_does(tiny_shape, tmp_path):
    shape = dataclasses.replace(tiny_shape, vocab_size=tiny_hf.VOCAB, tied=False)
    kinds = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
    models = {}
    for kind, traits in kinds.items():
        models[kind] = store.untrained(dataclasses.replace(shape, **traits), 5)
        hf.save(models[kind], tmp_path / kind)
    run("reference_logits.py", *(tmp_path / kind for kind in models))
    for kind, model in models.items():
        want = np.load(tmp_path / kind / "logits.npy")
        assert np.abs(logits(model) - want).max() < 1e-4, kind
