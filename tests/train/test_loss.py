"""The loss and its gradients are those of the plain softmax, wherever the trained tokens lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mcr_jax.model.sharding import make_mesh
from mcr_jax.train import loss as module
from mcr_jax.train.loss import trained_loss

B, T, V, E = 8, 40, 24, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)


@pytest.fixture
def inputs():
    """head, hidden, targets and weights; rows of all, some and no trained places."""
    rng = np.random.default_rng(0)
    head, hidden = (rng.standard_normal(s).astype(np.float32) for s in ((V, E), (B, T, E)))
    weights = np.array(rng.random((B, T)) < np.linspace(0, 1, B)[:, None], np.float32)
    return head, hidden, rng.integers(0, V, (B, T)), weights


def plain(head, hidden, targets, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head.T, targets)
    return jnp.sum(losses * weights), jnp.sum(weights)


def assert_alike(got, expected, rtol=1e-5):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


def gradients(of, inputs, asked=(0, 1)):
    return jax.jit(jax.grad(lambda *x: 0.3 * of(*x)[0], asked))(*inputs)


def test_loss_count_and_gradients_are_those_of_all_logits_at_once(inputs):
    assert_alike(jax.jit(trained_loss)(*inputs), plain(*inputs))
    assert_alike(gradients(trained_loss, inputs), gradients(plain, inputs))


@pytest.mark.parametrize("trained", [0, 1, 16, 17, B * T])
def test_any_number_of_trained_places_fills_the_chunks(inputs, trained):
    *others, _ = inputs
    weights = np.zeros(B * T, np.float32)
    weights[np.random.default_rng(trained).permutation(B * T)[:trained]] = 1
    asked = (*others, weights.reshape(B, T))
    assert_alike(jax.jit(trained_loss)(*asked), plain(*asked))
    assert_alike(gradients(trained_loss, asked), gradients(plain, asked))


@pytest.mark.parametrize("asked", [0, 1])
def test_one_gradient_alone_is_what_it_is_beside_the_other(inputs, asked):
    both = gradients(trained_loss, inputs)
    assert_alike(gradients(trained_loss, inputs, asked), both[asked])


def test_a_frozen_head_gets_no_gradient_and_validation_none_at_all(inputs):
    def products(asked):
        def total(head, hidden):
            return trained_loss(head, hidden, *inputs[2:])[0]

        traced = jax.grad(total, asked) if asked else total
        return jax.jit(traced).lower(*inputs[:2]).as_text().count("dot_general")

    assert [products(asked) for asked in ((), (1,), (0,), (0, 1))] == [1, 2, 2, 3]


def test_no_more_logits_exist_than_a_chunk_has(inputs):
    text = jax.jit(jax.grad(lambda *x: trained_loss(*x)[0], (0, 1))).lower(*inputs).as_text()
    assert f"tensor<{module.CHUNK}x{V}xf32>" in text
    assert f"{B * T}x{V}xf32" not in text and f"{B}x{T}x{V}xf32" not in text


def test_places_without_weight_get_no_gradient(inputs):
    d_hidden = gradients(trained_loss, inputs, 1)
    assert not d_hidden[inputs[3] == 0].any()
    assert d_hidden[inputs[3] == 1].any(axis=-1).all()


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 1, 8)])
def test_a_mesh_changes_neither_loss_nor_gradients(inputs, sizes):
    mesh = make_mesh(*sizes)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    specs = NamedSharding(mesh, PartitionSpec("tensor", "fsdp")), rows, rows, rows
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, spec) for x, spec in zip(inputs, specs, strict=True)]
        got = jax.jit(trained_loss)(*placed), gradients(trained_loss, placed)
    assert_alike(got, (plain(*inputs), gradients(plain, inputs)))


def test_rows_that_the_mesh_does_not_divide_are_one_shard(inputs):
    head, *others = inputs
    odd = (head, *(x[:3] for x in others))
    with jax.set_mesh(make_mesh(1, 8, 1)):
        got = jax.jit(trained_loss)(*odd), gradients(trained_loss, odd)
    assert_alike(got, (plain(*odd), gradients(plain, odd)))


def test_in_bfloat16_gradients_keep_their_dtype_and_add_up_in_float32(inputs):
    exact = gradients(plain, inputs)
    rough = [jnp.asarray(x, jnp.bfloat16) for x in inputs[:2]]
    got = gradients(trained_loss, (*rough, *inputs[2:]))
    for g, e in zip(got, exact, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(g.astype("f4"), e, atol=0.02 * np.abs(e).max())
