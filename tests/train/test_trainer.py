"""The compiled parts of training: initial state, step and validation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_run import CASES, PROMPT, settings

from mcr_jax.data.loader import Batches, fixed_batches
from mcr_jax.data.tokens import fit, tokenize
from mcr_jax.model import store
from mcr_jax.train.mesh import put
from mcr_jax.train.trainer import Trainer

NAMES = ("tokens", "targets", "positions", "segment_ids")


@pytest.fixture(scope="module")
def trainer(shape):
    return Trainer(settings(), shape, 6)


def test_training_starts_from_the_weights_that_are_sampled_as_the_base_model(trainer, shape):
    drawn = trainer.init().params
    base = nnx.to_pure_dict(nnx.state(store.untrained(shape, settings().seed), nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, drawn, base)


def test_ragged_batches_compile_the_step_once_and_move_nothing_by_themselves(
    trainer, clinic_tokenizer
):
    fitting = fit(tokenize(CASES["train"], PROMPT, clinic_tokenizer, None), 160, "drop").tokens
    batches = Batches(fitting, 8, 160, 0)
    state, seen = trainer.init(), set()
    for step in range(5):
        seen.add(int(batches[step]["weights"].sum()))
        with jax.transfer_guard("disallow"):
            state, _ = trainer.step(state, put(batches[step], trainer.mesh), {})
    assert len(seen) > 1
    assert trainer.step._cache_size() == 1


def test_the_validation_loss_weighs_tokens_not_batches(trainer, clinic_tokenizer):
    held_out = tokenize(CASES["train"][:9], PROMPT, clinic_tokenizer, None)
    held_out = sorted(held_out, key=lambda e: int(e.trained.sum()))
    params = trainer.init().params
    cut = len(held_out) - 2
    parts = [fixed_batches(part, 8, 160) for part in (held_out[:cut], held_out[cut:])]
    assert [len(part) for part in parts] == [1, 1]
    tokens = [float(part[0]["weights"].sum()) for part in parts]
    losses = [trainer.validate(params, {}, part) for part in parts]
    both = trainer.validate(params, {}, parts[0] + parts[1])
    assert both == pytest.approx(np.average(losses, weights=tokens), rel=1e-6)
    assert abs(both - np.mean(losses)) > 1e-4


def test_validation_takes_no_more_memory_than_a_step(shape):
    memory = {}
    for parts in (1, 4):
        settled = settings(**{"train.rows": 32, "train.accumulate": parts, "train.remat": "full"})
        made = Trainer(settled, dataclasses.replace(shape, remat="full"), 6)
        batch = jax.eval_shape(lambda: {n: jnp.zeros((32, 160), jnp.int32) for n in NAMES})
        batch["weights"] = jax.ShapeDtypeStruct((32, 160), jnp.float32)
        with jax.set_mesh(made.mesh):
            lowered = made._sums.lower(made.like().params, batch, {})
        memory[parts] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert memory[4] < 0.5 * memory[1]
