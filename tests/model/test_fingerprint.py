"""The content hash of weights depends on every bit of them and on no mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.model.abstract import abstract_decoder, initial_params
from mcr_jax.model.fingerprint import fingerprint
from mcr_jax.model.sharding import make_mesh, shardings

MESHES = [(1, 1, 8), (1, 8, 1), (2, 2, 2)]


@pytest.fixture(scope="module")
def params(tiny_shape):
    return initial_params(tiny_shape, 0)


@pytest.fixture(scope="module")
def name(tiny_shape):
    graph = abstract_decoder(tiny_shape)[0]
    return lambda params: fingerprint(nnx.merge(graph, params))


def changed(params, value):
    return params | {"layers": params["layers"] | {"q": value}}


def test_equal_weights_have_one_name_on_every_mesh(params, name):
    whole = name(params)
    for sizes in MESHES:
        placed = jax.device_put(params, shardings(make_mesh(*sizes), params))
        assert name(placed) == whole
    assert name(jax.tree.map(jnp.copy, params)) == whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 31))
def test_one_changed_bit_changes_the_name(params, name, dtype, place, bit):
    q = np.asarray(params["layers"]["q"].astype(dtype))
    bits = q.copy().view(f"uint{8 * q.itemsize}")
    bits.flat[place % q.size] ^= 1 << (bit % (8 * q.itemsize))
    other = jnp.asarray(bits.view(q.dtype))
    assert name(changed(params, other)) != name(changed(params, jnp.asarray(q)))


@pytest.mark.parametrize(
    "change",
    [
        lambda q: -q,  # an even number of sign bits
        lambda q: q[::-1],
        lambda q: q[:, ::-1],
        lambda q: q.at[0, 0, 0, 0].multiply(-1).at[1, 2, 3, 4].multiply(-1),
        lambda q: q.at[0, 0, 0, 0].set(q[0, 0, 0, 1]).at[0, 0, 0, 1].set(q[0, 0, 0, 0]),
        lambda q: q.astype(jnp.bfloat16),
        lambda q: q.astype(jnp.bfloat16).astype(jnp.float32),
    ],
)
def test_changes_that_leave_sums_alone_change_the_name(params, name, change):
    q = params["layers"]["q"]
    assert name(changed(params, change(q))) != name(params)


def test_the_same_values_under_another_name_are_other_weights(params, name):
    layers = params["layers"]
    swapped = layers | {"gate": layers["up"], "up": layers["gate"]}
    assert name(params | {"layers": swapped}) != name(params)
