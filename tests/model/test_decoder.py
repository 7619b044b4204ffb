"""The decoder computes what the textbook says, and no token sees what it must not."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mcr_jax.model import store
from mcr_jax.model.abstract import abstract_decoder, initial_params
from mcr_jax.model.shape import DecoderConfig, Rope

TOKENS = np.array([[5, 9, 2, 7, 11, 3, 8, 1]])  # no token twice
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0]])


@pytest.fixture(scope="module")
def model(tiny_shape):
    return store.untrained(dataclasses.replace(tiny_shape, tied=False), 0)


@pytest.fixture(scope="module")
def run(model):
    """Computes the model's logits, jitted."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, *inputs: nnx.merge(graph, params)(*inputs))
    return lambda *inputs: np.asarray(forward(params, *inputs))


@pytest.fixture(scope="module")
def influence(model):
    """Measures how much each input token (columns) moves the logits at each place (rows)."""
    graph, params = nnx.split(model)
    pure = nnx.to_pure_dict(params)
    direction = np.random.default_rng(0).standard_normal(model.config.vocab_size)

    @jax.jit
    def jacobian(positions, segment_ids):
        def along(table):
            logits = nnx.merge(graph, pure | {"embedding": table})(TOKENS, positions, segment_ids)
            return logits[0] @ direction

        return jax.jacrev(along)(pure["embedding"])

    def of(positions, segment_ids):
        moved = jacobian(positions, segment_ids)  # [T, V, E]
        return np.abs(np.asarray(moved)).sum(-1)[:, TOKENS[0]]

    return of


def textbook(config: DecoderConfig, params, tokens, positions, segments) -> np.ndarray:
    """Computes the forward pass again, in float64, one token and one head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    half, group = config.head_dim // 2, config.heads // config.kv_heads

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + config.norm_eps) * scale

    def turned(x, position):
        out = x.copy()
        for i in range(half):
            z = complex(x[i], x[i + half]) * np.exp(
                1j * position * config.rope.theta ** (-2 * i / config.head_dim)
            )
            out[i], out[i + half] = z.real, z.imag
        return out

    xs = [p["embedding"][t] * config.embedding_scale for t in tokens]
    for n in range(config.layers):
        layer = {name: stacked[n] for name, stacked in p["layers"].items()}
        heads, kv = [], []
        for x, position in zip(xs, positions, strict=True):
            h = norm(x, layer["attention_norm"])
            qs = [turned(h @ layer["q"][:, i], position) for i in range(config.heads)]
            ks = [turned(h @ layer["k"][:, i], position) for i in range(config.kv_heads)]
            heads.append(qs)
            kv.append((ks, [h @ layer["v"][:, i] for i in range(config.kv_heads)]))
        for t in range(len(xs)):
            seen = [s for s in range(t + 1) if segments[s] == segments[t]]
            for i in range(config.heads):
                scores = [
                    heads[t][i] @ kv[s][0][i // group] / math.sqrt(config.head_dim) for s in seen
                ]
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed = sum(w * kv[s][1][i // group] for w, s in zip(weights, seen, strict=True))
                xs[t] = xs[t] + mixed @ layer["o"][i]
            h = norm(xs[t], layer["mlp_norm"])
            gate = h @ layer["gate"]
            xs[t] = xs[t] + (gate / (1 + np.exp(-gate)) * (h @ layer["up"])) @ layer["down"]
    head = p["embedding"] if config.tied else p["head"]
    return np.stack([head @ norm(x, p["final_norm"]) for x in xs])


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 2), (False, 4), (False, 1)])
def test_the_logits_are_those_of_an_independent_forward_pass(tiny_shape, tied, kv_heads):
    config = dataclasses.replace(tiny_shape, tied=tied, kv_heads=kv_heads, rope=Rope(theta=77.0))
    params = initial_params(config, 3)
    rng = np.random.default_rng(1)  # norm scales start at one: make them matter
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype("f4"), params)
    made = nnx.merge(abstract_decoder(config)[0], params)
    got = made(TOKENS, POSITIONS + 300, SEGMENTS)
    assert got.dtype == jnp.float32
    want = textbook(config, params, TOKENS[0], POSITIONS[0] + 300, SEGMENTS[0])
    np.testing.assert_allclose(got[0], want, atol=2e-3, rtol=1e-4)


def test_a_tied_head_has_no_table_of_its_own(tiny_shape):
    tied, untied = (
        abstract_decoder(dataclasses.replace(tiny_shape, tied=tied))[1] for tied in (True, False)
    )
    assert set(untied) - set(tied) == {"head"}
    assert untied["head"].shape == untied["embedding"].shape


def test_no_logit_depends_on_a_later_token(influence):
    moved = influence(np.arange(8)[None], np.ones((1, 8), int))
    np.testing.assert_array_equal(moved > 0, np.tril(np.ones((8, 8), bool)))


def test_no_logit_depends_on_another_segment(influence):
    moved = influence(POSITIONS, SEGMENTS)
    same = SEGMENTS[0][:, None] == SEGMENTS[0]
    np.testing.assert_array_equal(moved > 0, np.tril(same))


def test_an_example_in_a_packed_row_has_the_logits_it_has_alone(run):
    packed = run(TOKENS, POSITIONS, SEGMENTS)[0]
    np.testing.assert_allclose(packed[:3], run(TOKENS[:, :3])[0], atol=1e-5)
    np.testing.assert_allclose(packed[3:7], run(TOKENS[:, 3:7])[0], atol=1e-5)
    assert np.abs(packed[3:7] - run(TOKENS)[0, 3:7]).max() > 0.01  # the row alone would differ


def test_no_positions_and_no_segments_mean_one_sequence_from_zero(run):
    implied = run(TOKENS)
    np.testing.assert_allclose(
        implied, run(TOKENS, np.arange(8)[None], np.full((1, 8), 4)), atol=1e-5
    )
    assert np.abs(implied - run(TOKENS, POSITIONS, np.ones((1, 8), int))).max() > 0.01


def test_only_distances_between_positions_matter(run):
    ones = np.ones((1, 8), int)
    near, far = (run(TOKENS, np.arange(8)[None] + shift, ones) for shift in (0, 500))
    np.testing.assert_allclose(near, far, atol=1e-3)


def test_grouped_heads_equal_the_same_heads_repeated(tiny_shape):
    params = initial_params(tiny_shape, 4)
    repeated = params["layers"] | {
        name: params["layers"][name].repeat(2, axis=2) for name in ("k", "v")
    }
    full = dataclasses.replace(tiny_shape, kv_heads=4)
    grouped = nnx.merge(abstract_decoder(tiny_shape)[0], params)
    many = nnx.merge(abstract_decoder(full)[0], params | {"layers": repeated})
    np.testing.assert_allclose(grouped(TOKENS), many(TOKENS), atol=1e-5)


@pytest.mark.parametrize(("tied", "above"), [(False, 0.7), (True, 2.0)])
def test_the_first_loss_is_near_that_of_a_uniform_guess(tied, above):
    """Unit-variance logits add a half; a tied head leans towards the token it has just read."""
    sizes = {"vocab_size": 512, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16}
    config = DecoderConfig(**sizes, layers=2, mlp_width=128, tied=tied)
    tokens = np.random.default_rng(0).integers(0, 512, (4, 65))
    logits = store.untrained(config, 0)(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    assert math.log(512) < losses.mean() < math.log(512) + above


def test_prefill_keeps_the_keys_and_values_that_the_layers_use(model, run):
    hidden, (keys, values) = model.hidden(TOKENS, keep_kv=True)
    c = model.config
    assert keys.shape == values.shape == (c.layers, 1, 8, c.kv_heads, c.head_dim)
    np.testing.assert_allclose(model.logits(hidden), run(TOKENS), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kv_heads": 3}, "model.kv_heads 3 does not divide heads 4"),
        ({"head_dim": 7}, "model.head_dim 7 is odd"),
        ({"layers": 0}, "model.layers must be positive"),
        ({"vocab_size": -1}, "model.vocab_size must be positive"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(tiny_shape, wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_shape, **wrong)
