"""Adapters train alone, and merging changes no logit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from lora_models import SPECS, TOKENS, halved, params_of, random_adapters, run, spread
from quick import quick

from mcr_jax.model import hf, lora
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.decoder import low_rank
from mcr_jax.model.shape import PROJECTIONS, LoraConfig


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


@pytest.mark.parametrize("name", ["plain", "gemma3"])
def test_fresh_adapters_change_no_bit_of_the_logits(plain, folder, name):
    model = plain if name == "plain" else hf.load(folder(name))
    adapted = lora.add(model, LoraConfig(rank=2, alpha=64.0), 0)
    np.testing.assert_array_equal(run(adapted), run(model))


def test_adding_adapters_copies_no_weight(plain):
    adapted = lora.add(plain, LoraConfig(rank=2, alpha=4), 0)
    before, after = (named(params_of(model)) for model in (plain, adapted))
    for name, leaf in before.items():
        assert after[name].unsafe_buffer_pointer() == leaf.unsafe_buffer_pointer()
    assert len(after) == len(before) + 2 * len(PROJECTIONS)
    assert plain.config.lora is None


def test_fresh_adapters_start_as_pefts_do_and_follow_from_the_seed(plain):
    model = halved(plain)
    made, again, other = (lora.add(model, LoraConfig(rank=8, alpha=8), s) for s in (1, 1, 2))
    for name in PROJECTIONS:
        inputs, _ = model.config.projection(name)
        a, b = (getattr(made.layers, f"{name}_lora_{half}")[...] for half in "ab")
        bound = math.prod(inputs) ** -0.5
        assert a.dtype == b.dtype == jnp.float32
        assert not np.any(b)
        assert 0.9 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(np.std(a), bound / math.sqrt(3), rtol=0.15)
        np.testing.assert_array_equal(a, again.stacked()[f"{name}_lora_a"])
        assert np.any(a != other.stacked()[f"{name}_lora_a"])


@pytest.mark.parametrize("target", quick(2, PROJECTIONS))
def test_each_target_alone_changes_the_logits_and_merging_it_does_not(plain, target):
    adapted = random_adapters(plain, LoraConfig(rank=3, alpha=6, targets=(target,), rslora=True))
    merged = lora.merge(adapted)
    assert merged.config == plain.config
    after = merged.stacked()
    assert [name for name, x in plain.stacked().items() if np.any(after[name] != x)] == [target]
    logits = run(adapted)
    assert np.abs(logits - run(plain)).max() > 1e-2
    np.testing.assert_allclose(run(merged), logits, atol=2e-5)


def test_merging_keeps_the_dtype_and_place_of_the_weights(plain):
    model = spread(halved(plain))
    adapted = random_adapters(model)
    merged = lora.merge(adapted)
    for name, leaf in merged.stacked().items():
        assert leaf.dtype == jnp.bfloat16
        assert leaf.sharding == model.stacked()[name].sharding
    w, a, b = (
        adapted.stacked()[name].astype(jnp.float32) for name in ("o", "o_lora_a", "o_lora_b")
    )
    want = np.asarray(w) + 4 / 3 * np.einsum("lhdr,lre->lhde", a, b)
    np.testing.assert_array_equal(merged.stacked()["o"], want.astype(jnp.bfloat16))


def next_token_loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()


@pytest.mark.slow
def test_training_moves_the_adapters_alone(plain):
    graph, adapters, frozen = lora.split(
        lora.add(plain, LoraConfig(rank=2, alpha=4, dropout=0.1), 0)
    )
    before = jax.device_get((adapters, frozen))
    tx = optax.adam(1e-2)
    opt_state = tx.init(adapters)

    def step(adapters, opt_state, frozen, key):
        def loss(adapters):
            return next_token_loss(nnx.merge(graph, adapters, frozen)(TOKENS, dropout_key=key))

        value, grads = jax.value_and_grad(loss)(adapters)
        updates, opt_state = tx.update(grads, opt_state, adapters)
        return optax.apply_updates(adapters, updates), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    losses = []
    for key in jax.random.split(jax.random.key(0), 12):
        adapters, opt_state, value = step(adapters, opt_state, frozen, key)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.3
    jax.tree.map(np.testing.assert_array_equal, before[1], jax.device_get(frozen))
    for name, leaf in named(adapters).items():
        assert np.any(leaf != named(before[0])[name]), name
    moments = [x.shape for x in jax.tree.leaves(opt_state) if x.ndim]
    assert sorted(moments) == sorted([x.shape for x in jax.tree.leaves(adapters)] * 2)


def made_by(jaxpr):
    """Yields the shapes of every product in a program and in the programs within."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from made_by(inner)


def test_training_multiplies_out_no_matrix_of_a_weights_size(plain):
    graph, adapters, frozen = lora.split(lora.add(plain, LoraConfig(rank=2, alpha=4), 0))

    def loss(adapters, frozen):
        return next_token_loss(nnx.merge(graph, adapters, frozen)(TOKENS))

    # A gradient is multiplied out as a matrix of inputs by outputs.
    sizes = [map(math.prod, plain.config.projection(name)) for name in PROJECTIONS]
    gradients = {tuple(size) for size in sizes}
    weights = {x.shape[1:] for n, x in plain.stacked().items() if n in PROJECTIONS} | gradients
    weights |= {shape[::-1] for shape in weights}
    whole = set(made_by(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(adapters, frozen).jaxpr))
    alone = set(made_by(jax.make_jaxpr(jax.grad(loss))(adapters, frozen).jaxpr))
    assert gradients <= whole  # or this test would see none
    assert not alone & weights


@pytest.mark.slow
def test_a_mesh_of_eight_changes_nothing(plain):
    adapted = random_adapters(plain, LoraConfig(rank=2, alpha=4, dropout=0.5))
    for key in (None, jax.random.key(0)):
        one, eight = (run(model, dropout_key=key) for model in (adapted, spread(adapted)))
        np.testing.assert_allclose(eight, one, atol=1e-5)
    one, eight = (
        lora.add(model, LoraConfig(rank=2, alpha=4), 7).stacked()
        for model in (plain, spread(plain))
    )
    for name, spec in SPECS.items():
        np.testing.assert_array_equal(eight[name], one[name])
        assert eight[name].sharding.spec == spec


@pytest.mark.slow
def test_dropout_follows_from_the_key_and_needs_one(plain):
    config = LoraConfig(rank=3, alpha=4, dropout=0.5)
    adapted, undropped = (
        random_adapters(plain, dataclasses.replace(config, dropout=p)) for p in (0.5, 0.0)
    )
    first, second = (jax.random.key(seed) for seed in (0, 1))
    np.testing.assert_array_equal(run(adapted), run(undropped))
    np.testing.assert_array_equal(run(undropped, dropout_key=first), run(undropped))
    dropped = run(adapted, dropout_key=first)
    np.testing.assert_array_equal(run(adapted, dropout_key=first), dropped)
    assert np.abs(run(adapted, dropout_key=second) - dropped).max() > 1e-2
    assert np.abs(run(adapted) - dropped).max() > 1e-2


def test_dropout_zeroes_its_share_and_keeps_the_expectation(plain):
    config = dataclasses.replace(plain.config, lora=LoraConfig(rank=1, alpha=2, dropout=0.25))
    a, b = jnp.eye(16)[:, :1], jnp.ones((1, 32))  # reads the first input alone
    layer, h = {"up_lora_a": a, "up_lora_b": b}, jnp.full((4000, 16), 3.0)
    assert np.all(low_rank(config, layer, h, "up", None) == 6)
    made = np.asarray(low_rank(config, layer, h, "up", jax.random.key(0)))[:, 0]
    assert set(np.unique(made)) == {0, 8}
    assert abs((made == 0).mean() - 0.25) < 0.03
    assert abs(made.mean() - 6) < 0.25


def test_each_layer_and_projection_drops_its_own(plain):
    """Keys and values of one token, with all weights alike and a residual that nothing joins."""
    model = random_adapters(plain, LoraConfig(rank=3, alpha=4, dropout=0.5, targets=("k", "v")))
    params = params_of(model)
    layers = {name: x[:1].repeat(2, 0) for name, x in params["layers"].items()}
    layers |= {f"v{end}": layers[f"k{end}"] for end in ("", "_lora_a", "_lora_b")}
    layers |= {name: layers[name] * 0 for name in ("o", "down", "attention_post_norm")}
    config = dataclasses.replace(model.config, qk_norm=False)
    del layers["q_norm"], layers["k_norm"]
    model = nnx.merge(abstract_decoder(config)[0], params | {"layers": layers})
    for key in (None, jax.random.key(0)):
        kv = model.hidden(TOKENS[:1, :1], keep_kv=True, dropout_key=key)[1]
        different = {np.asarray(x).round(4).tobytes() for made in kv for x in made}
        assert len(different) == (1 if key is None else 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "lora.rank must be a positive whole number, not 0"),
        ({"rank": 2.5}, "lora.rank must be a positive whole number, not 2.5"),
        ({"alpha": 0}, "lora.alpha must be a positive number, not 0"),
        ({"alpha": -1.0}, "lora.alpha must be a positive number, not -1.0"),
        ({"alpha": math.nan}, "lora.alpha must be a positive number, not nan"),
        ({"dropout": 1.0}, r"lora.dropout must be in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, r"lora.dropout must be in \[0, 1\), not -0.1"),
        ({"targets": ("q", "lm_head")}, "lora.targets must be some of q, k, v, o, gate, up, down"),
        ({"targets": ()}, "lora.targets must be some of"),
        ({"targets": ("q", "q")}, "each once"),
    ],
)
def test_adapters_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as refused:
        LoraConfig(**{"rank": 2, "alpha": 4, **wrong})
    assert "\n" not in str(refused.value)


def test_adapters_that_the_model_cannot_have_are_refused(plain):
    with pytest.raises(ValueError, match="rank 17 is larger than a side of q, which is 16 x 32"):
        lora.add(plain, LoraConfig(rank=17, alpha=4), 0)
    adapted = lora.add(plain, LoraConfig(rank=16, alpha=4), 0)
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(adapted, LoraConfig(rank=2, alpha=4), 0)
    with pytest.raises(ValueError, match="has adapters already"):
        lora.load(adapted, "nowhere")
    for needs in (lora.merge, lora.split, lambda model: lora.save(model, "nowhere")):
        with pytest.raises(ValueError, match="has no adapters"):
            needs(plain)
