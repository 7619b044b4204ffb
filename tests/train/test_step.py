"""One step: what counts in the loss, what is decayed, and that it is what it was."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import jaxprs_in_params
from quick import quick

from mcr_jax.data.example import Example
from mcr_jax.data.loader import stack
from mcr_jax.model.abstract import abstract_decoder, initial_params, parts
from mcr_jax.model.decoder import embed
from mcr_jax.model.shape import PROJECTIONS, LoraConfig
from mcr_jax.model.sharding import abstract, make_mesh, shardings
from mcr_jax.train.loss import trained_loss
from mcr_jax.train.mesh import put
from mcr_jax.train.optimizer import optimizer
from mcr_jax.train.step import _moved, init_state, loss_sums, train_step

OPTIM = {"learning_rate": 0.1, "warmup_steps": 4, "steps": 20, "weight_decay": 0.5}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}
GOLDEN = 4.993758


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        prompt, answer = rng.integers(2, 7, 2)
        ids = rng.integers(0, 48, prompt + answer).astype(np.int32)
        made.append(Example(str(number), ids, np.arange(len(ids)) >= prompt))
    return made


@pytest.fixture(scope="module")
def params(tiny_shape):
    return jax.device_get(initial_params(tiny_shape, 0))


@pytest.fixture(scope="module")
def batch():
    e = examples(8)
    return stack([e[:2], e[2:4], e[4:7], e[7:]], 32)


@pytest.fixture(scope="module")
def sums(tiny_shape, params):
    graph = abstract_decoder(tiny_shape)[0]
    run = jax.jit(lambda params, batch: loss_sums(graph, params, batch))
    return lambda batch: tuple(float(x) for x in run(params, batch))


@pytest.fixture(scope="module")
def step(tiny_shape):
    return jax.jit(train_step(abstract_decoder(tiny_shape)[0], *optimizer(**OPTIM)))


def test_only_completion_tokens_count_in_the_loss(sums, batch):
    trained = batch["weights"] == 1
    other = (batch["targets"] + 1) % 48
    unchanged = {**batch, "targets": np.where(trained, batch["targets"], other)}
    changed = {**batch, "targets": np.where(trained, other, batch["targets"])}
    assert sums(unchanged) == sums(batch)
    assert sums(changed)[0] != sums(batch)[0]
    assert sums(batch)[1] == trained.sum()


def test_padding_moves_nothing(sums, batch):
    padding = batch["segment_ids"] == 0
    assert padding.any()
    noise = np.random.default_rng(1).integers(0, 48, padding.shape)
    changed = {**batch, "tokens": np.where(padding, noise, batch["tokens"]).astype(np.int32)}
    assert sums(changed) == sums(batch)


def test_a_packed_batch_has_the_summed_loss_of_its_examples_alone(sums):
    e = examples(8)
    packed = sums(stack([e[:2], e[2:4], e[4:7], e[7:]], 32))
    alone = [sums(stack([e[i : i + 1], [], [], []], 32)) for i in range(8)]
    np.testing.assert_allclose(packed, np.sum(alone, axis=0), rtol=1e-6)


def test_batches_of_ragged_rows_add_up_however_they_are_cut(sums):
    e = examples(8)
    whole = np.sum([sums(stack([[x] for x in e[i : i + 4]], 32)) for i in (0, 4)], axis=0)
    halves = [sums(stack([[x] for x in e[i : i + 2]] + [[], []], 32)) for i in (0, 2, 4, 6)]
    np.testing.assert_allclose(np.sum(halves, axis=0), whole, rtol=1e-6)
    means = [total / tokens for total, tokens in halves]
    assert abs(np.mean(means) - whole[0] / whole[1]) > 1e-3  # what a mean of means would give


def test_the_loss_is_the_cross_entropy_of_the_softmax():
    rng = np.random.default_rng(0)
    logits, targets = 3 * rng.standard_normal((2, 3, 5)), rng.integers(0, 5, (2, 3))
    weights = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = sum(-np.log(p[i][targets[i]]) for i in zip(*np.nonzero(weights), strict=True))
    same = jnp.eye(5, dtype=jnp.float32)
    total, count = trained_loss(same, jnp.asarray(logits, jnp.float32), targets, weights)
    np.testing.assert_allclose([total, count], [want, 3], rtol=1e-5)


def test_the_first_loss_is_what_it_was(sums, batch):
    total, tokens = sums(batch)
    assert total / tokens == pytest.approx(GOLDEN, abs=2e-4), (
        f"the first loss is {total / tokens:.6f}. If initialisation, decoder or loss were meant to "
        f"change, set GOLDEN in this file to that number and say so in the commit."
    )


def test_a_step_lowers_the_loss_of_its_batch_and_reports_what_it_did(step, params, batch):
    state = init_state(jax.tree.map(jnp.asarray, params), optimizer(**OPTIM)[0])
    losses = []
    for number in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        assert set(metrics) == {"loss", "gradient_norm", "learning_rate", "trained_tokens"}
        assert metrics["trained_tokens"] == batch["weights"].sum()
        assert int(state.step) == number + 1
    assert losses[-1] < 0.8 * losses[0]


def test_a_batch_without_trained_tokens_has_no_loss_and_no_gradient(step, params, batch):
    state = init_state(jax.tree.map(jnp.asarray, params), optimizer(**OPTIM)[0])
    _, metrics = step(state, {**batch, "weights": np.zeros_like(batch["weights"])})
    assert (float(metrics["loss"]), float(metrics["gradient_norm"])) == (0, 0)


def test_weights_decay_and_norm_scales_do_not(params):
    tx, schedule = optimizer(**OPTIM)
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    nothing = jax.tree.map(np.zeros_like, params)
    for _ in range(3):  # the warm-up starts at zero
        updates, state = update(nothing, state, params)
    decayed = jax.tree.map(
        lambda u, p: np.allclose(u, -0.5 * schedule(2) * p, rtol=1e-5) and bool(u.any()),
        updates,
        params,
    )
    still = jax.tree.map(lambda u: not u.any(), updates)
    norms = {"attention_norm", "mlp_norm", "final_norm"}
    for path, value in jax.tree_util.tree_leaves_with_path(decayed):
        assert value == (path[-1].key not in norms)
    for path, value in jax.tree_util.tree_leaves_with_path(still):
        assert value == (path[-1].key in norms)


def test_gradients_are_clipped_by_their_global_norm():
    tx, _ = optimizer(**OPTIM)
    small = {"w": jnp.array([0.3, 0.4]), "v": jnp.array([0.0])}
    grads = {"w": jnp.array([300.0, 400.0]), "v": jnp.array([0.0])}
    _, clipped = tx.update(grads, tx.init(small), small)
    first_moment = optax.tree.get(clipped, "mu")
    np.testing.assert_allclose(first_moment["w"], 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 4), (1, 20), (2, 20), (5, 0)])
def test_the_learning_rate_warms_up_and_decays_to_a_tenth(steps, warmup):
    _, schedule = optimizer(**{**OPTIM, "steps": steps, "warmup_steps": warmup})
    rates = np.array([float(schedule(n)) for n in range(steps + 1)])
    peak = min(warmup, steps - 1)
    assert rates[peak] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.01)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


@pytest.fixture(scope="module")
def after(params, tiny_shape):
    """The state and metrics after one step on a batch, by shape and options."""

    def run(batch, shape=tiny_shape, start=params, **options):
        tx, schedule = optimizer(**{**OPTIM, "warmup_steps": 0})
        state = init_state(jax.tree.map(jnp.asarray, start), tx)
        step = jax.jit(train_step(abstract_decoder(shape)[0], tx, schedule, **options))
        return jax.device_get(step(state, batch))

    return run


def test_eight_rows_at_once_and_in_four_parts_give_the_same_step(after):
    e = examples(14)  # rows of one to three examples, and two of padding alone
    batch = stack([e[:3], e[3:4], e[4:6], e[6:9], e[9:10], e[10:], [], []], 64)
    (one, told), (four, told_four) = after(batch), after(batch, accumulate=4)
    assert told["trained_tokens"] == told_four["trained_tokens"]
    np.testing.assert_allclose(told["loss"], told_four["loss"], rtol=1e-6)
    np.testing.assert_allclose(told["gradient_norm"], told_four["gradient_norm"], rtol=1e-5)
    # The first moments are the clipped gradients, scaled.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.opt_state, four.opt_state
    )


@pytest.mark.slow
def test_parts_of_a_bfloat16_model_add_up_in_float32(after, batch, params):
    rough = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    (one, _), (four, _) = after(batch, start=rough), after(batch, start=rough, accumulate=4)
    for a, b in zip(*map(jax.tree.leaves, (one.opt_state, four.opt_state)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), atol=2e-3, rtol=2**-6)


@pytest.mark.parametrize("remat", quick(1, ["full", "dots"]))
def test_what_is_computed_again_changes_nothing(after, batch, tiny_shape, remat):
    kept, told = after(batch)
    again, told_again = after(batch, dataclasses.replace(tiny_shape, remat=remat))
    np.testing.assert_allclose(told["loss"], told_again["loss"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept.opt_state, again.opt_state
    )


def test_bfloat16_computes_about_the_same_and_keeps_float32_weights(after, batch):
    (_, told), (rough, told_rough) = after(batch), after(batch, compute="bfloat16")
    assert told["loss"] != told_rough["loss"]
    np.testing.assert_allclose(told["loss"], told_rough["loss"], rtol=0.02)
    np.testing.assert_allclose(told["gradient_norm"], told_rough["gradient_norm"], rtol=0.05)
    assert {x.dtype.name for x in jax.tree.leaves(rough.params)} == {"float32"}


def test_weights_in_bfloat16_move_by_less_than_their_spacing_on_average():
    weights = {"w": jnp.full(20_000, 1.0, jnp.bfloat16), "v": jnp.full(20_000, -3.0, jnp.bfloat16)}
    updates = {
        "w": jnp.full(20_000, 2**-11, jnp.float32),
        "v": jnp.full(20_000, 2**-9, jnp.float32),
    }
    moved = jax.jit(_moved)(weights, updates, jax.random.key(0))
    for name, exact in (("w", 1 + 2**-11), ("v", -3 + 2**-9)):
        assert moved[name].dtype == jnp.bfloat16
        values, counts = np.unique(np.asarray(moved[name], np.float64), return_counts=True)
        assert len(values) == 2 and values[0] < exact < values[1]  # the two neighbours, no other
        assert np.average(values, weights=counts) == pytest.approx(exact, abs=2e-4)
    still = jax.jit(_moved)(weights, jax.tree.map(jnp.zeros_like, updates), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, still, weights)


@pytest.fixture(scope="module")
def adapted(tiny_shape):
    """A decoder with adapters that are not zero: its shape, its adapters and the rest."""
    shape = dataclasses.replace(tiny_shape, lora=LoraConfig(rank=2, alpha=4.0, dropout=0.5))
    adapters, rest = jax.device_get(parts(initial_params(shape, 0)))
    rng = np.random.default_rng(2)
    layers = {n: x + 0.1 * rng.standard_normal(x.shape) for n, x in adapters["layers"].items()}
    return shape, {"layers": {n: x.astype(np.float32) for n, x in layers.items()}}, rest


@pytest.mark.slow
def test_adapters_alone_are_trained_and_their_gradient_is_that_of_the_whole(adapted, batch):
    shape, adapters, rest = adapted
    graph = abstract_decoder(shape)[0]

    def loss(adapters, rest):
        return loss_sums(graph, adapters, batch, frozen=rest)[0]

    def loss_of_all(params):
        return loss_sums(graph, params, batch)[0]

    alone = jax.jit(jax.grad(loss))(adapters, rest)
    whole = jax.jit(jax.grad(loss_of_all))(rest | {"layers": rest["layers"] | adapters["layers"]})
    assert set(alone["layers"]) == {f"{p}_lora_{half}" for p in PROJECTIONS for half in "ab"}
    for name, gradient in alone["layers"].items():
        np.testing.assert_allclose(gradient, whole["layers"][name], atol=1e-5)
        assert np.abs(gradient).max() > 0
    tx, schedule = optimizer(**{**OPTIM, "warmup_steps": 0})
    step = jax.jit(train_step(graph, tx, schedule))
    state, _ = step(init_state(jax.tree.map(jnp.asarray, adapters), tx), batch, rest)
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    moments = optax.tree.get(state.opt_state, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(adapters)


@pytest.mark.slow
def test_every_step_and_every_part_of_one_drops_something_else(adapted, batch):
    shape, adapters, rest = adapted
    tx, schedule = optimizer(**{**OPTIM, "learning_rate": 0.0})
    step = jax.jit(train_step(abstract_decoder(shape)[0], tx, schedule))
    state, losses = init_state(jax.tree.map(jnp.asarray, adapters), tx), []
    for _ in range(3):
        state, told = step(state, batch, rest)
        losses.append(float(told["loss"]))
    again = step(init_state(jax.tree.map(jnp.asarray, adapters), tx), batch, rest)[1]
    assert len(set(losses)) == 3  # the weights stand still: only what is dropped differs
    assert float(again["loss"]) == losses[0]  # and is the same whenever that step is made
    same = {name: np.concatenate([x[:1]] * 4) for name, x in batch.items()}
    in_parts = jax.jit(train_step(abstract_decoder(shape)[0], tx, schedule, accumulate=4))
    whole = jax.jit(train_step(abstract_decoder(shape)[0], tx, schedule))
    fresh = init_state(jax.tree.map(jnp.asarray, adapters), tx)
    four = float(in_parts(fresh, same, rest)[1]["loss"])
    alone = float(whole(fresh, {n: x[:1] for n, x in same.items()}, rest)[1]["loss"])
    assert four != pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_named_schedule_follows_the_warm_up(kind):
    _, schedule = optimizer(**OPTIM, schedule=kind)
    rates = np.array([float(schedule(n)) for n in range(21)])
    np.testing.assert_allclose(rates[:5], np.linspace(0, 0.1, 5), rtol=1e-6)
    half = {"cosine": 0.055, "linear": 0.055, "constant": 0.1}[kind]
    end = {"cosine": 0.01, "linear": 0.01, "constant": 0.1}[kind]
    assert (rates[12], rates[20]) == (pytest.approx(half), pytest.approx(end))
    if kind != "constant":  # a quarter of the way down: the cosine is still higher
        expected = {"cosine": 0.01 + 0.09 * (1 + np.cos(np.pi / 4)) / 2, "linear": 0.0775}[kind]
        assert rates[8] == pytest.approx(expected)


@pytest.mark.parametrize("mu_dtype", ["float32", "bfloat16"])
def test_moments_of_bfloat16_weights_are_as_told(params, mu_dtype):
    rough = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    state = jax.jit(optimizer(**OPTIM, mu_dtype=mu_dtype)[0].init)(rough)
    assert {x.dtype.name for x in jax.tree.leaves(optax.tree.get(state, "mu"))} == {mu_dtype}
    assert {x.dtype.name for x in jax.tree.leaves(optax.tree.get(state, "nu"))} == {"float32"}


def test_every_mesh_makes_the_same_step(params, tiny_shape):
    e = examples(20)
    batch = stack([e[:3], e[3:4], e[4:6], e[6:9], e[9:10], e[10:13], e[13:17], e[17:]], 64)
    tx, schedule = optimizer(**{**OPTIM, "warmup_steps": 0})
    made = []
    for sizes in ((1, 1, 1), (1, 8, 1), (2, 2, 2)):
        mesh = make_mesh(*sizes, jax.devices()[: np.prod(sizes)])
        state = init_state(params, tx)
        placed = jax.device_put(state, shardings(mesh, state))
        with jax.set_mesh(mesh):
            step = jax.jit(train_step(abstract_decoder(tiny_shape)[0], tx, schedule))
            state, told = step(placed, put(batch, mesh))
        used = {d for x in jax.tree.leaves(state.opt_state) for d in x.sharding.device_set}
        assert len(used) == mesh.size
        made.append(jax.device_get((state.opt_state, told)))
    for moments, told in made[1:]:
        np.testing.assert_allclose(told["loss"], made[0][1]["loss"], rtol=1e-6)
        np.testing.assert_allclose(told["gradient_norm"], made[0][1]["gradient_norm"], rtol=1e-5)
        # The first moments are the clipped gradients, scaled.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moments, made[0][0])


def test_bfloat16_gradients_are_measured_and_clipped_in_float32():
    grads = {f"w{n}": jnp.full(33, 1 + n / 64, jnp.bfloat16) for n in range(64)}
    exact = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in grads.values()))
    weights = jax.tree.map(jnp.zeros_like, grads)
    tx, _ = optimizer(**OPTIM)
    _, state = jax.jit(tx.update)(grads, tx.init(weights), weights)
    means = optax.tree.get(state, "mu").values()
    clipped = np.sqrt(sum(float((np.asarray(m, np.float64) ** 2).sum()) for m in means)) / 0.1
    assert clipped == pytest.approx(1.0, rel=1e-4)  # OPTIM's norm, of gradients of norm `exact`
    assert exact > 50


@pytest.mark.parametrize("sharing", [512, 8192])
@pytest.mark.parametrize(("kept", "bound"), [("float32", 1e-5), ("bfloat16", 2**-8)])
def test_the_gradient_of_a_row_that_many_tokens_share_is_their_exact_sum(
    tiny_shape, sharing, kept, bound
):
    shape, rng = dataclasses.replace(tiny_shape, embedding_scale=1.0), np.random.default_rng(0)
    wanted = jnp.asarray(rng.normal(0.2, 1, (sharing, 16)), jnp.bfloat16)
    table, tokens = jnp.zeros((48, 16), kept), jnp.full(sharing, 7)

    def product(table):
        x = embed(shape, table, tokens, "bfloat16")
        return jnp.vdot(x, wanted, preferred_element_type=jnp.float32)

    got = np.asarray(jax.jit(jax.grad(product))(table), np.float64)
    exact = np.asarray(wanted, np.float64).sum(axis=0)
    assert np.linalg.norm(got[7] - exact) < bound * np.linalg.norm(exact)
    assert not np.delete(got, 7, axis=0).any()


def sums_of(jaxpr):
    """Primitive and dtype of every sum in a program and in the programs within."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("scatter-add", "reduce_sum"):
            yield equation.primitive.name, equation.outvars[0].aval.dtype.name
        for inner in jaxprs_in_params(equation.params):
            yield from sums_of(inner)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)])
def test_no_gradient_is_summed_over_tokens_in_bfloat16(tiny_shape, batch, lora):
    shape = dataclasses.replace(tiny_shape, qkv_bias=True, qk_norm=True, lora=lora)
    graph, params = abstract_decoder(shape)

    def loss(params):
        return loss_sums(graph, params, batch, "bfloat16")[0]

    found = set(sums_of(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert {("scatter-add", "float32"), ("reduce_sum", "float32")} <= found
    assert not [name for name, dtype in found if dtype == "bfloat16"]


@contextlib.contextmanager
def _compiled_anew(empty):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(empty))
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("sizes", "lora", "accumulate"),
    quick(
        1,
        [
            ((2, 2, 2), None, 1),
            ((2, 4, 1), None, 2),
            ((2, 2, 2), LoraConfig(rank=2, alpha=4.0), 1),
        ],
    ),
)
def test_no_gradient_is_summed_over_devices_in_bfloat16(
    tiny_shape, batch, tmp_path, sizes, lora, accumulate
):
    """In the program as it is cut over devices, before a CPU makes all of its sums float32."""
    shape = dataclasses.replace(tiny_shape, qkv_bias=True, qk_norm=True, lora=lora)
    tx, schedule = optimizer(**OPTIM)
    mesh = make_mesh(*sizes)
    tree = jax.eval_shape(lambda: initial_params(shape, 0))
    trained, frozen = parts(tree) if lora else (tree, None)
    state = jax.eval_shape(lambda params: init_state(params, tx), trained)
    state, frozen = (abstract(t, shardings(mesh, t)) for t in (state, frozen))
    graph = abstract_decoder(shape)[0]
    step = train_step(graph, tx, schedule, accumulate=accumulate, compute="bfloat16")
    rows = {name: np.concatenate([x] * 4) for name, x in batch.items()}
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(state, put(rows, mesh), frozen)
    dump = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    with _compiled_anew(tmp_path / "cache"):  # a program from the cache leaves no dump
        lowered.compile(compiler_options=dump)
    (cut,) = tmp_path.glob("*jit_step*after_spmd-partitioning*")
    found = re.findall(
        r"= \(?(\w+)\[.*? (?:all-reduce|reduce-scatter)\(.*?replica_groups=(\S+)", cut.read_text()
    )
    assert len([dtype for dtype, _ in found if dtype == "f32"]) > 10
    # Neighbours share the tensor axis: between them only activations are summed.
    between_rows = [groups for dtype, groups in found if dtype == "bf16"]
    assert set(between_rows) <= ({"[4,2]<=[8],"} if sizes[2] == 2 else set())
