"""Parameters lie where the rules say, and no mesh changes what is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from quick import quick

from mcr_jax.errors import UsageError
from mcr_jax.model.abstract import abstract_decoder, initial_params
from mcr_jax.model.sharding import abstract, make_mesh, shardings
from mcr_jax.train.mesh import batch_sharding, put, training_mesh
from mcr_jax.train.optimizer import optimizer
from mcr_jax.train.step import init_state, train_step

INTENDED = {
    "embedding": P("tensor", "fsdp"),
    "head": P("tensor", "fsdp"),
    "final_norm": P(None),
    "layers.attention_norm": P(None, None),
    "layers.mlp_norm": P(None, None),
    "layers.q": P(None, "fsdp", "tensor", None),
    "layers.k": P(None, "fsdp", "tensor", None),
    "layers.v": P(None, "fsdp", "tensor", None),
    "layers.o": P(None, "tensor", None, "fsdp"),
    "layers.gate": P(None, "fsdp", "tensor"),
    "layers.up": P(None, "fsdp", "tensor"),
    "layers.down": P(None, "tensor", "fsdp"),
}
OPTIM = {"learning_rate": 1e-2, "warmup_steps": 0, "steps": 8, "weight_decay": 0.1}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}
ROWS, LENGTH = 8, 12


@pytest.fixture(scope="module")
def untied(tiny_shape):
    return dataclasses.replace(tiny_shape, tied=False)


@pytest.fixture(scope="module")
def batch(untied):
    rng = np.random.default_rng(0)
    made = {
        name: rng.integers(0, untied.vocab_size, (ROWS, LENGTH), np.int32)
        for name in ("tokens", "targets")
    }
    made["segment_ids"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH), np.int32))
    made["positions"] = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    made["weights"] = rng.integers(0, 2, (ROWS, LENGTH)).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def stepped(untied, batch):
    """Runs one step on a mesh (data, fsdp, tensor); returns the state and the step's metrics."""
    graph = abstract_decoder(untied)[0]
    params = jax.device_get(initial_params(untied, 0))
    tx, schedule = optimizer(**OPTIM)
    whole = jax.device_get(init_state(params, tx))

    def on(*sizes):
        mesh = make_mesh(*sizes, jax.devices()[: int(np.prod(sizes))])
        placed, rows = shardings(mesh, whole), batch_sharding(mesh)
        step = jax.jit(
            train_step(graph, tx, schedule),
            donate_argnums=0,
            in_shardings=(placed, rows),
            out_shardings=(placed, None),
        )
        state = jax.device_put(whole, placed)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, put(batch, mesh))
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, placed))
        return jax.device_get((state, metrics))

    return on


@pytest.fixture(scope="module")
def alone(stepped):
    return stepped(1, 1, 1)


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def test_every_parameter_and_its_moments_have_the_intended_spec(untied):
    mesh = make_mesh(2, 2, 2)
    shapes = abstract_decoder(untied)[1]
    assert {n: s.spec for n, s in named(shardings(mesh, shapes)).items()} == INTENDED
    state = jax.eval_shape(lambda: init_state(initial_params(untied, 0), optimizer(**OPTIM)[0]))
    for name, sharding in named(shardings(mesh, state)).items():
        for parameter, spec in INTENDED.items():
            if name.endswith("." + parameter):
                assert sharding.spec == spec
                break
        else:
            assert sharding.spec == P()  # counters
    moments = [name for name in named(state) if ".mu." in name or ".nu." in name]
    assert len(moments) == 2 * len(INTENDED)


def test_an_axis_that_does_not_divide_its_dimension_is_left_out():
    mesh = make_mesh(1, 2, 4)
    leaves = {"layers": {"q": jax.ShapeDtypeStruct((2, 16, 6, 8), jnp.float32)}}
    leaves |= {"embedding": jax.ShapeDtypeStruct((7, 3), jnp.float32)}
    specs = {name: s.spec for name, s in named(shardings(mesh, leaves)).items()}
    assert specs == {"layers.q": P(None, "fsdp", None, None), "embedding": P(None, None)}


def test_an_abstract_tree_has_shapes_dtypes_and_shardings_and_no_values(untied):
    mesh = make_mesh(2, 2, 2)
    shapes = abstract_decoder(untied)[1]
    placed = shardings(mesh, shapes)
    for name, leaf in named(abstract(shapes, placed)).items():
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert leaf.sharding.spec == INTENDED[name]


@pytest.mark.parametrize("sizes", quick(1, [((2, 2, 2),), ((1, 8, 1),)]))
def test_a_mesh_changes_neither_loss_nor_gradients_nor_the_updated_parameters(
    stepped, alone, sizes
):
    state, metrics = stepped(*sizes)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, alone[1][name], rtol=2e-6)
    # The first moment is a tenth of the clipped gradient.
    moments, expected = (optax.tree.get(s.opt_state, "mu") for s in (state, alone[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moments, expected)
    assert all(leaf.any() for leaf in jax.tree.leaves(moments))
    # Adam's first update is the learning rate times the gradient's sign: where the gradient is
    # rounding noise, so is the sign.
    clear = jax.tree.map(lambda m: np.abs(m) > 1e-6, expected)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a[c], b[c], atol=1e-4),
        *(state.params, alone[0].params, clear),
    )


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_one_size_may_be_left_to_the_devices(sizes, shape):
    assert tuple(make_mesh(*sizes).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((3, 1, 1), "data x fsdp x tensor = 3; use -1 for one of them"),
        ((16, 1, 1), "data x fsdp x tensor = 16; use -1 for one of them"),
        ((1, -1, 3), "data x tensor = 3 does not divide 8"),
        ((3, -1, 1), "data x tensor = 3 does not divide 8"),
        ((-1, -1, 1), "only one of config.mesh may be -1"),
        ((0, -1, 1), "a size is at least 1, or -1 for what the others leave"),
        ((-2, -2, 2), "a size is at least 1, or -1 for what the others leave"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_why_in_one_line(sizes, why):
    with pytest.raises(UsageError) as refused:
        training_mesh(*sizes, rows=8)
    assert str(refused.value) == (
        f"config.mesh {sizes[0]} x {sizes[1]} x {sizes[2]} (data, fsdp, tensor) does not fit "
        f"8 devices: {why}"
    )


def test_rows_that_cannot_be_split_evenly_say_what_to_set():
    with pytest.raises(UsageError) as refused:
        training_mesh(2, 2, 2, rows=6)
    assert str(refused.value) == (
        "config.train.rows=6 is not a multiple of data x fsdp = 4; set config.train.rows to a "
        "multiple of 4, or config.mesh.tensor higher"
    )
    more = (
        r"accumulate = 4 x 3; .* multiple of 12, config\.train\.accumulate lower, or config\.mesh"
    )
    with pytest.raises(UsageError, match=more):
        training_mesh(2, 2, 2, rows=8, accumulate=3)
    assert training_mesh(1, 1, 8, rows=3).shape["tensor"] == 8
