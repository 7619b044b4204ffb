"""Optimizers and schedules: optax's own updates, counted bytes, refused fields."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from mcr_jax import config as configs
from mcr_jax.errors import UsageError
from mcr_jax.model.sharding import AXES, make_mesh, shardings
from mcr_jax.plan.training_bytes import bytes_on_device
from mcr_jax.train.optimizer import OPTIMIZERS, SCHEDULES, optimizer
from mcr_jax.train.trainer import configured

FIELDS = {"learning_rate": 0.1, "warmup_steps": 0, "steps": 4, "weight_decay": 0.1}
FIELDS |= {"clip_norm": 1e9, "b1": 0.8, "b2": 0.9, "schedule": "constant"}
MASK = {"layers": {"down": True, "mlp_norm": False}}


def by_hand(name):
    decay = {"weight_decay": 0.1, "mask": MASK}
    if name == "adafactor":
        return optax.chain(
            *(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
            *(optax.add_decayed_weights(0.1, MASK), optax.scale_by_learning_rate(0.1)),
        )
    if name == "muon":
        numbers = optax.contrib.MuonDimensionNumbers(1, 2)
        return optax.contrib.muon(
            *(0.1,),
            beta=0.8,
            adam_b1=0.8,
            adam_b2=0.9,
            weight_decay=0.1,
            adam_weight_decay=0.1,
            weight_decay_mask=MASK,
            muon_weight_dimension_numbers={"layers": {"down": numbers, "mlp_norm": None}},
            consistent_rms=0.2,
        )
    return {"adamw": optax.adamw, "lion": optax.lion}[name](0.1, b1=0.8, b2=0.9, **decay)


@pytest.fixture(scope="module")
def params():
    down = jax.random.normal(jax.random.key(0), (2, 128, 256))
    return {"layers": {"down": down, "mlp_norm": jnp.ones((2, 256))}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_optax_called_by_hand(name, params):
    made, hand = optimizer(**FIELDS, name=name)[0], by_hand(name)
    grads = jax.tree.map(jnp.sin, params)
    ours, theirs = made.init(params), hand.init(params)
    for _ in range(2):
        mine, ours = made.update(grads, ours, params)
        expected, theirs = hand.update(grads, theirs, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), mine, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_planned_bytes_are_those_of_the_state_on_a_mesh(name, params):
    tx = optimizer(**FIELDS, name=name)[0]
    shapes = jax.eval_shape(tx.init, params)
    state = jax.jit(tx.init, out_shardings=shardings(make_mesh(1, 4, 2), shapes))(params)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held == bytes_on_device(AbstractMesh((1, 4, 2), AXES), shapes)


@pytest.mark.promise("a changed field that it does not use is refused")
@pytest.mark.parametrize("field", ["b1", "b2"])
def test_a_changed_field_that_the_optimizer_does_not_use_is_refused(field):
    config = configs.default().optim
    config.name = "adafactor"
    configured(config, 4)
    config[field] = 0.5
    with pytest.raises(UsageError, match=rf"config.optim.{field}=0.5: optimizer adafactor"):
        configured(config, 4)


@pytest.mark.parametrize(("field", "known"), [("name", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_a_name_without_an_entry_is_refused_with_those_that_have_one(field, known):
    config = configs.default().optim
    for name in known:
        config[field] = name
        configured(config, 4)
    config[field] = "newton"
    with pytest.raises(UsageError, match=f"optim.{field} is one of {', '.join(known)}, not"):
        configured(config, 4)
