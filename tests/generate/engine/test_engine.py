"""The engine draws the tokens of the plain model, and a sample never depends on other samples."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from flax import nnx
from quick import quick
from scipy import stats

from mcr_jax.generate.engine import engine as engine_module
from mcr_jax.generate.engine.engine import Engine
from mcr_jax.generate.engine.scheduling import Prompt
from mcr_jax.generate.engine.state import Shape, blueprint
from mcr_jax.generate.engine.weights import take
from mcr_jax.model import lora, store
from mcr_jax.model.shape import DecoderConfig, LoraConfig, Rope, Yarn
from mcr_jax.model.sharding import bytes_per_device, make_mesh, one_device, shardings

SHAPE = Shape(slots=8, share=3, prompt_tokens=12, max_tokens=8, chunk=3)
TOKENS = {
    11: [3, 1, 4, 1, 5, 9, 2, 6],
    22: [7],
    33: [8, 2, 8, 1],
    44: [5, 5, 0],
    55: list(range(12)),
}
NO_EOS = (1000,)

GEMMA = {
    "activation": "gelu_tanh",
    "local_rope": Rope(theta=100.0),
    "rope": Rope(scaling="linear", factor=2.0),
    "window": 4,
    "local_layers": (True, False),
    "norm_offset": 1.0,
    "qk_norm": True,
    "sandwich_norm": True,
    "attention_scale": 0.25,
}
YARN = Yarn(factor=4.0, original_length=8, attention_factor=1.3)
FAMILIES = {
    "qwen2": {"qkv_bias": True, "tied": False},
    "qwen3": {"qk_norm": True, "tied": False, "rope": YARN},
    "llama": {"rope": Rope(scaling="llama3", factor=8.0, original_length=16), "tied": False},
    "gemma": GEMMA,
}


def sharp(shape: DecoderConfig, seed: int = 5):
    """Returns an untrained model with sharp attention: every token and position matters."""
    model = store.untrained(shape, seed)
    for weights, factor in ((model.layers.q, 4), (model.layers.o, 8)):
        weights[...] = factor * weights[...]
    for name in ("q_bias", "k_bias", "v_bias"):
        if shape.qkv_bias:
            bias = getattr(model.layers, name)
            bias[...] = jax.random.normal(jax.random.key(1), bias.shape)
    return model


@pytest.fixture(scope="module")
def model(tiny_shape):
    return sharp(dataclasses.replace(tiny_shape, tied=False))


def engine_of(model, shape=SHAPE, eos=NO_EOS, seed=0, mesh=None):
    return Engine(model.config, take(model, keep=True), shape, eos, seed, mesh or one_device())


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model)


def prompt(case: int, samples=(0, 1, 2, 3), limits=8, **options) -> Prompt:
    each = (limits,) * len(samples) if isinstance(limits, int) else limits
    ids = np.array(TOKENS[case], np.int32)
    return Prompt(tokens=ids, case=case, samples=tuple(samples), limits=each, **options)


def drawn(engine, *prompts) -> dict:
    """Returns the samples by (case, index); exactly the wanted ones must come, each once."""
    found = [((prompts[s.prompt].case, s.index), s) for s in engine.run(prompts)]
    wanted = [(p.case, index) for p in prompts for index in p.samples]
    assert sorted(key for key, _ in found) == sorted(wanted)
    return dict(found)


def texts(samples: dict) -> dict:
    return {key: sample.tokens.tolist() for key, sample in samples.items()}


def logits_after(model, ids: list[list[int]]) -> np.ndarray:
    """Computes the plain model's logits at every place of padded rows."""
    graph, params = nnx.split(model)
    rows = np.zeros((len(ids), SHAPE.prompt_tokens + SHAPE.max_tokens), np.int32)
    for row, tokens in zip(rows, ids, strict=True):
        row[: len(tokens)] = tokens
    return np.asarray(jax.jit(lambda params, rows: nnx.merge(graph, params)(rows))(params, rows))


def assert_greedy(model, samples: dict):
    """Checks that every token is the most likely one, recomputed without a KV cache."""
    keys = list(samples)
    logits = logits_after(model, [TOKENS[c] + samples[c, i].tokens.tolist() for c, i in keys])
    for key, of_row in zip(keys, logits, strict=True):
        start, count = len(TOKENS[key[0]]) - 1, len(samples[key].tokens)
        behind = of_row[start : start + count]
        np.testing.assert_array_equal(samples[key].tokens, behind.argmax(axis=-1))
        logprobs = jax.nn.log_softmax(behind)[np.arange(count), samples[key].tokens]
        np.testing.assert_allclose(samples[key].logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("family", quick(2, ("gemma", "qwen3", "qwen2", "llama")))
def test_greedy_tokens_equal_recomputation_without_a_cache(tiny_shape, family):
    model = sharp(dataclasses.replace(tiny_shape, **FAMILIES[family]))
    samples = drawn(
        engine_of(model), *(prompt(case, limits=(8, 5, 1, 8), temperature=0.0) for case in TOKENS)
    )
    assert_greedy(model, samples)
    assert any(len(set(s.tokens.tolist())) > 2 for s in samples.values())
    assert [len(samples[11, i].tokens) for i in range(4)] == [8, 5, 1, 8]
    assert not any(s.ended for s in samples.values())


def test_a_sample_ends_with_an_end_token_even_if_that_is_its_first(model, engine):
    prompts = [prompt(case, temperature=0.0) for case in TOKENS]
    whole = drawn(engine, *prompts)
    eos = (whole[11, 0].tokens[0], whole[22, 0].tokens[2])
    for key, sample in drawn(engine_of(model, eos=eos), *prompts).items():
        expected = whole[key].tokens.tolist()
        ends = [i for i, token in enumerate(expected) if token in eos]
        assert sample.tokens.tolist() == expected[: ends[0] + 1 if ends else 8]
        assert sample.ended == bool(ends)
    assert len(texts(drawn(engine_of(model, eos=eos), prompts[0]))[11, 0]) == 1


def test_a_sample_is_cut_at_its_own_limit_only(engine):
    whole = texts(drawn(engine, prompt(11), prompt(33)))
    cut = texts(drawn(engine, prompt(11, limits=(1, 4, 8, 2)), prompt(33)))
    for (case, index), tokens in whole.items():
        limit = (1, 4, 8, 2)[index] if case == 11 else 8
        assert cut[case, index] == tokens[:limit]


def test_two_tokens_follow_the_exact_joint_distribution(model):
    draws = 4000
    shape = dataclasses.replace(SHAPE, slots=64, share=64, max_tokens=2, chunk=32)
    how = {"temperature": 0.8, "top_k": 6}
    one = prompt(11, samples=range(draws), limits=2, **how)
    pairs = [tuple(s.tokens) for s in engine_of(model, shape).run([one])]
    assert len(pairs) == draws

    def probabilities(logits):
        scaled = np.where(logits >= np.sort(logits)[-6], logits, -np.inf).astype(float) / 0.8
        p = np.exp(scaled - scaled.max())
        return p / p.sum()

    first = probabilities(logits_after(model, [TOKENS[11]])[0, len(TOKENS[11]) - 1])
    firsts = np.flatnonzero(first)
    after = logits_after(model, [[*TOKENS[11], int(t)] for t in firsts])[:, len(TOKENS[11])]
    expected = {
        (t, u): draws * first[t] * second[u]
        for t, second in zip(firsts, map(probabilities, after), strict=True)
        for u in np.flatnonzero(second)
    }
    counts = dict.fromkeys(expected, 0)
    for pair in pairs:
        counts[pair] += 1  # KeyError: a pair of probability 0
    often = [pair for pair, n in expected.items() if n >= 5]
    seen, due = ([table[p] for p in often] for table in (counts, expected))
    if len(often) < len(expected):
        seen, due = [*seen, draws - sum(seen)], [*due, draws - sum(due)]
    assert len(often) > 8
    assert stats.chisquare(seen, due).pvalue > 1e-3


def test_samples_of_a_case_differ_and_so_do_cases_with_one_prompt(model, engine):
    samples = texts(drawn(engine, prompt(11, samples=range(10)), prompt(33, samples=range(10))))
    for case in (11, 33):
        assert len({tuple(samples[case, i]) for i in range(10)}) == 10
    twin = dataclasses.replace(prompt(11, samples=range(10)), case=99)
    others = texts(drawn(engine, twin))
    assert not {tuple(t) for t in others.values()} & {tuple(samples[11, i]) for i in range(10)}
    assert texts(drawn(engine_of(model, seed=1), prompt(11))) != {
        (11, i): samples[11, i] for i in range(4)
    }


OTHER_WAYS = {
    "other order of cases": lambda prompts: prompts[::-1],
    "a subset of cases": lambda prompts: prompts[1:3],
    "other batch mates": lambda prompts: [
        dataclasses.replace(prompts[0], case=77, temperature=0.0),
        *prompts[2:],
    ],
    "samples one by one": lambda prompts: [
        dataclasses.replace(p, samples=(i,), limits=(p.limits[i],))
        for i in range(4)
        for p in prompts
    ],
    "samples in another order": lambda prompts: [
        dataclasses.replace(p, samples=p.samples[::-1], limits=p.limits[::-1]) for p in prompts
    ],
    "samples left after a kill": lambda prompts: [
        dataclasses.replace(p, samples=p.samples[k:], limits=p.limits[k:])
        for k, p in enumerate(prompts[:4])
    ],
}


@pytest.mark.promise(
    "A (case, sample) pair gives the same tokens with other cases, another order, fewer samples"
)
@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"temperature": 0.6, "top_k": 9}], ids=str)
def test_a_sample_is_the_same_whatever_is_drawn_beside_it(engine, options, way):
    prompts = [
        prompt(case, limits=tuple(1 + (case + i) % 8 for i in range(4)), **options)
        for case in TOKENS
    ]
    expected = texts(drawn(engine, *prompts))
    changed = OTHER_WAYS[way](prompts)
    found = {(changed[s.prompt].case, s.index): s.tokens.tolist() for s in engine.run(changed)}
    assert {k: v for k, v in found.items() if k[0] != 77} == {
        key: tokens for key, tokens in expected.items() if key in found
    }
    assert len(found) == sum(len(p.samples) for p in changed)


@pytest.mark.parametrize(
    "change", [{"chunk": 1}, {"chunk": 50}, {"share": 1}, {"slots": 16}], ids=str
)
def test_slots_share_and_chunk_change_no_token(model, engine, change):
    prompts = [prompt(case, limits=(3, 8, 1, 6)) for case in TOKENS]
    other = engine_of(model, dataclasses.replace(SHAPE, **change))
    assert texts(drawn(other, *prompts)) == texts(drawn(engine, *prompts))


def test_slots_never_wait_for_one_another(model):
    """The steps are at most all tokens over the slots, plus the longest sample."""
    limits = [1 + (7 * i) % 8 for i in range(40)]
    prompts = [
        dataclasses.replace(
            prompt(11), case=n, samples=(0, 1), limits=tuple(limits[2 * n : 2 * n + 2])
        )
        for n in range(20)
    ]
    engine = engine_of(model, dataclasses.replace(SHAPE, chunk=4))
    assert len(list(engine.run(prompts))) == 40
    assert engine.pulse.tokens == sum(limits)
    assert engine.pulse.steps <= -(-sum(limits) // SHAPE.slots) + 8


def test_one_program_serves_all_runs_of_all_models_of_a_kind(model, caplog):
    shape = dataclasses.replace(SHAPE, max_tokens=7)  # new to this process
    twin = sharp(model.config, 6)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        drawn(engine_of(model, shape), *(prompt(case, limits=7) for case in TOKENS))
        first = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
        caplog.clear()
        ways = {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3}
        for n, way in enumerate(ways):
            prompts = [prompt(c, samples=range(n + 1), limits=n + 2, **way) for c in [*TOKENS][n:]]
            drawn(engine_of(twin, shape, eos=(7,), seed=n), *prompts)
        later = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert sum("jit(decode)" in message or " decode " in message for message in first) == 1
    assert later == []


def test_the_kv_cache_is_never_copied(model):
    """The temporary memory of a chunk is less than the KV cache of one layer."""
    shape, mesh = Shape(slots=16, share=4, prompt_tokens=512, max_tokens=512, chunk=4), one_device()
    state = blueprint(model.config, shape, mesh, "xla")
    engine = engine_of(model, shape)
    memory = engine.traced().lower().compile().memory_analysis()
    stores = bytes_per_device(state.layers)
    assert memory.alias_size_in_bytes >= bytes_per_device(state)
    assert memory.temp_size_in_bytes < stores / model.config.layers


def test_taking_the_weights_deletes_them_in_the_model(tiny_shape):
    model = store.untrained(tiny_shape, 0)
    stacked = model.stacked()
    before = {name: np.asarray(stack) for name, stack in stacked.items()}
    weights = take(model)
    assert all(stack.is_deleted() for stack in stacked.values())
    for index, layer in enumerate(weights.layers):
        for name, part in layer.items():
            np.testing.assert_array_equal(part, before[name][index])


@pytest.mark.slow
def test_adapters_beside_the_weights_are_honoured(tiny_shape):
    plain = sharp(tiny_shape)
    adapted = lora.add(plain, LoraConfig(rank=2, alpha=8.0), jax.random.key(0))
    for name, p in vars(adapted.layers).items():
        if name.endswith("_lora_b"):
            p[...] = jax.random.normal(jax.random.key(3), p.shape)
    samples = drawn(engine_of(adapted), *(prompt(c, temperature=0.0) for c in TOKENS))
    assert_greedy(adapted, samples)
    assert texts(samples) != texts(
        drawn(engine_of(plain), *(prompt(c, temperature=0.0) for c in TOKENS))
    )


MESHES = [(2, 1, 2), (1, 1, 2), (1, 1, 4), (4, 1, 1), (1, 2, 2)]


@pytest.mark.parametrize("sizes", quick(1, ((sizes,) for sizes in MESHES)))
def test_any_mesh_draws_the_same_tokens(model, engine, sizes):
    mesh = make_mesh(*sizes, jax.devices()[: np.prod(sizes)])
    graph, params = nnx.split(model)
    pure = nnx.to_pure_dict(params)
    spread = nnx.merge(graph, jax.device_put(pure, shardings(mesh, pure)))
    prompts = [prompt(case, limits=(3, 8, 1, 6), top_p=0.9) for case in TOKENS]
    got = drawn(engine_of(spread, mesh=mesh), *prompts)
    assert texts(got) == texts(drawn(engine, *prompts))


@pytest.mark.parametrize(
    ("kernel", "head_dim"), quick(0, [("gpu-interpret", 16), ("tpu-interpret", 128)])
)
def test_a_kernel_draws_the_same_tokens_as_xla(tiny_shape, monkeypatch, kernel, head_dim):
    """Runs in Pallas' interpreter; the GPU kernel leaves the local layers to XLA."""
    gemma = dataclasses.replace(tiny_shape, **GEMMA, head_dim=head_dim, dtype="bfloat16")
    model = store.untrained(gemma, 5)
    prompts = [prompt(case, limits=4, temperature=0.0) for case in TOKENS]
    expected = drawn(engine_of(model), *prompts)
    monkeypatch.setattr(engine_module, "choose", lambda config, shape: kernel)
    found = drawn(engine_of(model), *prompts)
    for key, sample in expected.items():
        np.testing.assert_array_equal(found[key].tokens, sample.tokens)
        np.testing.assert_allclose(found[key].logprobs, sample.logprobs, atol=0.02)


@pytest.mark.parametrize("sizes", quick(1, [((1, 2, 4),), ((2, 1, 2),), ((1, 1, 1),)]))
def test_the_tpu_kernel_is_lowered_whole_on_any_mesh(tiny_shape, monkeypatch, sizes):
    """With 4 devices on the tensor axis, each has both key heads."""
    gemma = dataclasses.replace(tiny_shape, **GEMMA, head_dim=128, dtype="bfloat16")
    monkeypatch.setattr(engine_module, "choose", lambda config, shape: "tpu")
    mesh = make_mesh(*sizes, jax.devices()[: np.prod(sizes)])
    traced = engine_of(store.untrained(gemma, 5, mesh), mesh=mesh).traced()
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 2 * gemma.layers


def test_an_int8_kv_cache_draws_nearly_the_same(model):
    shape = dataclasses.replace(SHAPE, kv_dtype="int8")
    one, other = (
        drawn(engine_of(model, s), *(prompt(c, temperature=0.0) for c in TOKENS))
        for s in (SHAPE, shape)
    )
    first = [abs(one[key].logprobs[:2] - other[key].logprobs[:2]).max() for key in one]
    assert 0 < max(first) < 0.3
    assert any(one[key].tokens.tolist() == other[key].tokens.tolist() for key in one)


def test_a_sample_that_is_stopped_ends_there_and_its_slot_goes_on(model, engine):
    whole = texts(drawn(engine, *(prompt(c) for c in TOKENS)))

    def after(token):
        def stop(tokens):
            found = np.flatnonzero(tokens == token)
            return int(found[0]) + 1 if len(found) else None

        return stop

    token = whole[11, 0][1]
    for chunk in (1, 3, 50):
        cut = drawn(
            engine_of(model, dataclasses.replace(SHAPE, chunk=chunk)),
            *(prompt(c, stop=after(token)) for c in TOKENS),
        )
        for key, tokens in whole.items():
            places = [i for i, t in enumerate(tokens) if t == token]
            assert cut[key].tokens.tolist() == tokens[: places[0] + 1 if places else 8]
            assert cut[key].ended == bool(places)
            assert len(cut[key].logprobs) == len(cut[key].tokens)


def test_a_run_that_is_closed_early_frees_its_memory(engine):
    prompts = [prompt(case) for case in TOKENS]
    expected = texts(drawn(engine, *prompts))
    run = engine.run(prompts)
    next(run)
    with pytest.raises(RuntimeError, match="close that run first"):
        next(engine.run(prompts))
    held = len(jax.live_arrays())
    run.close()
    assert len(jax.live_arrays()) < held - 20  # without the KV cache
    assert texts(drawn(engine, *prompts)) == expected


def test_a_prompt_with_nan_logits_changes_no_other(model):
    graph, params = nnx.split(model)
    pure = nnx.to_pure_dict(params)
    pure["embedding"] = pure["embedding"].at[40].set(np.nan)
    broken = engine_of(nnx.merge(graph, pure))
    prompts = [dataclasses.replace(prompt(c), temperature=0.7, top_p=0.9) for c in TOKENS]
    bad = dataclasses.replace(prompts[0], tokens=np.full(12, 40, np.int32), case=99)
    expected = drawn(broken, *prompts)
    found = drawn(
        broken,
        *[
            bad,
            *prompts,
            dataclasses.replace(bad, case=98),
            *(dataclasses.replace(p, case=p.case + 1000) for p in prompts),
        ],
    )
    assert all(np.isnan(found[99, i].logprobs[0]) for i in range(4))
    for key, sample in expected.items():
        np.testing.assert_array_equal(found[key].tokens, sample.tokens)
        np.testing.assert_array_equal(found[key].logprobs, sample.logprobs)
    late = [s for key, s in found.items() if key[0] > 1000 and 40 not in s.tokens]
    assert len(late) > 10
    assert all(np.isfinite(s.logprobs).all() for s in late)


def test_nothing_wanted_is_nothing_done(engine):
    assert list(engine.run([])) == []
    assert list(engine.run([prompt(11, samples=())])) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"tokens": np.zeros(13, np.int32)}, "13 tokens, room for 12"),
        ({"tokens": np.zeros(0, np.int32)}, "0 tokens"),
        ({"limits": (9,)}, "room for 8"),
        ({"limits": (0,)}, "room for 8"),
        ({"samples": (1, 1), "limits": (2, 2)}, "must be different"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"case": 2**32}, "in 32 bits"),
    ],
)
def test_invalid_prompts_are_refused(engine, bad, says):
    invalid = dataclasses.replace(prompt(11, samples=(0,)), **bad)
    with pytest.raises(ValueError, match=says):
        list(engine.run([invalid]))


def test_slots_must_be_a_multiple_of_the_tile(model):
    with pytest.raises(ValueError, match="slots=12 is not a multiple of 8"):
        engine_of(model, dataclasses.replace(SHAPE, slots=12))
