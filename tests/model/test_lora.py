"""Adapters compute what PEFT's do, train alone, and go into the weights and to disk unchanged."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import tiny_hf
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P
from quick import quick

from mcr_jax.errors import McrError
from mcr_jax.model import hf, lora
from mcr_jax.model.blueprint import blueprint, initial_params
from mcr_jax.model.decoder import low_rank
from mcr_jax.model.shape import PROJECTIONS, LoraConfig
from mcr_jax.model.sharding import make_mesh, shardings

TOKENS = np.array([[5, 9, 2, 7, 11, 3, 8, 1], [3, 3, 40, 6, 30, 2, 0, 9]])
SPECS = {
    **{f"{name}_lora_a": P(None, "fsdp", None) for name in ("q", "k", "v", "gate", "up")},
    **{f"{name}_lora_b": P(None, None, "tensor", None) for name in ("q", "k", "v")},
    **{f"{name}_lora_b": P(None, None, "tensor") for name in ("gate", "up")},
    "o_lora_a": P(None, "tensor", None, None),
    "down_lora_a": P(None, "tensor", None),
    **{f"{name}_lora_b": P(None, None, "fsdp") for name in ("o", "down")},
}
with open(tiny_hf.GOLDEN / "lora.json", encoding="utf-8") as file:
    PEFT = json.load(file)


@pytest.fixture(scope="module")
def plain(tiny_shape):
    """A decoder with every part that a family has."""
    every = dataclasses.replace(tiny_shape, qk_norm=True, qkv_bias=True, sandwich_norm=True)
    return nnx.merge(blueprint(every)[0], jax.jit(lambda: initial_params(every, 0))())


def random_adapters(model, config=None, dtype="float32"):
    """`model` with adapters whose two halves are random."""
    config = config or LoraConfig(rank=3, alpha=4.0)
    graph, adapters, frozen = lora.split(lora.add(model, config, 0))
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda x: jax.device_put(
            (np.asarray(x) + 0.3 * rng.standard_normal(x.shape)).astype(dtype), x.sharding
        ),
        adapters,
    )
    return nnx.merge(graph, adapters, frozen)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def spread(model):
    """The model on a mesh of eight devices."""
    params = params_of(model)
    placed = shardings(make_mesh(2, 2, 2), params)
    return nnx.merge(blueprint(model.config)[0], jax.device_put(params, placed))


def halved(model):
    """The model in bfloat16."""
    graph = blueprint(dataclasses.replace(model.config, dtype="bfloat16"))[0]
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(model)))


def run(model, tokens=TOKENS, **options):
    """The model's logits, jitted."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens, **options))
    return np.asarray(forward(params, jnp.asarray(tokens)))


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The name of a tiny model -> its folder and one of adapters for it, as PEFT writes them."""

    def of(name):
        folder = tmp_path_factory.mktemp(name)
        shapes = json.loads((tiny_hf.GOLDEN / "shapes.json").read_text())[name]
        base = tiny_hf.write(folder / "base", tiny_hf.VARIANTS[name], tiny_hf.weights(name, shapes))
        adapters = folder / "adapters"
        adapters.mkdir()
        (adapters / lora.CONFIG).write_text(json.dumps(PEFT["configs"][name]))
        made = tiny_hf.weights(name, {key: tuple(s) for key, s in PEFT["shapes"][name].items()})
        safetensors.numpy.save_file(made, adapters / lora.TENSORS, {"format": "pt"})
        return base, adapters

    return of


@pytest.mark.parametrize("name", PEFT["configs"])
def test_adapters_that_peft_wrote_compute_what_peft_computes_merged_or_not(golden, name):
    base, adapters = golden(name)
    model = lora.load(hf.load(base), adapters)
    with np.load(tiny_hf.GOLDEN / "lora.npz") as stored:
        want = stored[name]
    for adapted in (model, lora.merge(model)):
        got = run(adapted, tiny_hf.tokens())[:, tiny_hf.PLACES]
        assert np.abs(got - want).max() < 1e-4


@pytest.mark.parametrize("name", sorted(PEFT["configs"].keys() - {"phi3"}))
def test_what_is_saved_is_what_peft_writes(golden, name, tmp_path):
    base, adapters = golden(name)
    lora.save(lora.load(hf.load(base), adapters), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {lora.CONFIG, lora.TENSORS}
    theirs, ours = (
        safetensors.numpy.load_file(folder / lora.TENSORS)
        for folder in (adapters, tmp_path / "out")
    )
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    told = json.loads((tmp_path / "out" / lora.CONFIG).read_text())
    peft = dict(PEFT["configs"][name])
    assert told.pop("base_model_name_or_path") == str(base)
    ends = {key.split(".")[-3] for key in PEFT["shapes"][name]}
    assert set(told.pop("target_modules")) == ends
    assert told == {key: peft[key] for key in told}


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_fused_projections_are_written_as_one_of_more_rank(golden, rslora, tmp_path):
    config = LoraConfig(rank=4, alpha=6.0, targets=("q", "v", "o", "gate", "up"), rslora=rslora)
    model = hf.load(golden("phi3")[0])
    adapted = random_adapters(model, config)
    lora.save(adapted, tmp_path / "out")
    keys = json.loads((tmp_path / "out" / lora.CONFIG).read_text())
    assert keys["target_modules"] == ["gate_up_proj", "o_proj", "qkv_proj"]
    assert keys["rank_pattern"] == {"qkv_proj": 12, "gate_up_proj": 8}
    again = lora.load(model, tmp_path / "out")
    assert again.config == adapted.config
    for name, x in adapted.stacked().items():
        np.testing.assert_array_equal(again.stacked()[name], x)
    (tmp_path / "out" / lora.CONFIG).write_text(json.dumps(keys | {"alpha_pattern": {}}))
    with pytest.raises(McrError, match="rank_pattern"):
        lora.load(model, tmp_path / "out")


@pytest.mark.parametrize("name", ["plain", "gemma3"])
def test_fresh_adapters_change_no_bit_of_the_logits(plain, golden, name):
    model = plain if name == "plain" else hf.load(golden(name)[0])
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
    """The shapes of every product in a program and in the programs within."""
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_and_loading_change_no_bit_on_any_mesh(plain, dtype, tmp_path):
    adapted = random_adapters(plain, LoraConfig(rank=3, alpha=2.5, dropout=0.25), dtype)
    lora.save(adapted, tmp_path / "adapters")
    for model in (plain, spread(plain)):
        loaded = lora.load(model, tmp_path / "adapters")
        assert loaded.config == adapted.config
        for name, leaf in adapted.stacked().items():
            got = loaded.stacked()[name]
            assert got.dtype == leaf.dtype
            np.testing.assert_array_equal(np.asarray(got), np.asarray(leaf))
    for name, spec in SPECS.items():
        assert loaded.stacked()[name].sharding.spec == spec
        assert loaded.stacked()[name].sharding.mesh == make_mesh(2, 2, 2)
    lora.save(loaded, tmp_path / "from_mesh")
    for name in (lora.CONFIG, lora.TENSORS):
        first, second = (tmp_path / folder / name for folder in ("adapters", "from_mesh"))
        assert first.read_bytes() == second.read_bytes()
    cast = lora.load(plain, tmp_path / "adapters", dtype="float16")
    assert {x.dtype.name for x in jax.tree.leaves(lora.split(cast)[1])} == {"float16"}


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
    model = nnx.merge(blueprint(config)[0], params | {"layers": layers})
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
    with pytest.raises(ValueError, match=message) as told:
        LoraConfig(**{"rank": 2, "alpha": 4, **wrong})
    assert "\n" not in str(told.value)


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


@pytest.fixture(scope="module")
def kept(plain, tmp_path_factory):
    """A folder of adapters on q and down."""
    folder = tmp_path_factory.mktemp("kept") / "adapters"
    lora.save(random_adapters(plain, LoraConfig(rank=2, alpha=4, targets=("q", "down"))), folder)
    return folder


@pytest.fixture
def saved(kept, tmp_path):
    """A function that rewrites the two files in a copy of `kept`, and returns its folder."""
    folder = shutil.copytree(kept, tmp_path / "adapters")

    def rewrite(config=None, tensors=None):
        if config is not None:
            told = json.loads((folder / lora.CONFIG).read_text()) | config
            (folder / lora.CONFIG).write_text(json.dumps(told))
        if tensors is not None:
            found = safetensors.numpy.load_file(folder / lora.TENSORS)
            safetensors.numpy.save_file(tensors(found), folder / lora.TENSORS)
        return folder

    return rewrite


@pytest.mark.parametrize(
    "targets",
    [
        ["down_proj", "self_attn.q_proj"],
        [
            f"model.layers.{i}.{end}"
            for i in (0, 1)
            for end in ("mlp.down_proj", "self_attn.q_proj")
        ],
        r"model\.layers\.\d+\..*\.(q|down)_proj",
        r".*\.(q_proj|down_proj)",
    ],
)
def test_targets_are_read_as_peft_reads_them(plain, saved, targets):
    read = lora.load(plain, saved({"target_modules": targets}))
    assert read.config.lora.targets == ("q", "down")


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_of_a_multimodal_model_the_adapters_of_the_text_half_are_read(plain, saved, prefix):
    want = lora.load(plain, saved()).stacked()

    def renamed(found):
        vision = {
            f"base_model.model.{end}.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.ones(
                (2, 9)
            )
            for end in ("model.vision_tower", "vision_tower.vision_model")
        }
        stem = "base_model.model.model."
        return vision | {n.replace(stem, f"base_model.model.{prefix}"): x for n, x in found.items()}

    got = lora.load(plain, saved(tensors=renamed)).stacked()
    assert all(np.array_equal(got[name], x) for name, x in want.items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("fan_in_fan_out", True),
        ("exclude_modules", ["k_proj"]),
        ("lora_bias", True),
        ("trainable_token_indices", [3]),
        ("a_key_of_tomorrow", "on"),
        ("target_modules", ["q_proj", "lm_head"]),
        ("target_modules", ["layers.0.self_attn.q_proj"]),
        ("target_modules", r"model\.layers\.1\..*q_proj"),
        ("target_modules", "q_proj("),
        ("target_modules", "out_proj"),
        ("target_modules", None),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", None),
        ("lora_dropout", 1.5),
    ],
)
def test_what_cannot_be_honoured_is_one_line_that_names_the_key(plain, saved, key, value):
    own = {"r": "lora.rank", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout"}
    with pytest.raises(McrError, match=own.get(key, key)) as told:
        lora.load(plain, saved({key: value}))
    assert "\n" not in str(told.value) and lora.CONFIG in str(told.value)


def test_wrong_tensors_are_one_line_that_names_them_all(plain, saved):
    name = "base_model.model.model.layers.{}.{}.weight"
    missing = name.format(0, "self_attn.q_proj.lora_A")
    misshapen = name.format(1, "mlp.down_proj.lora_B")
    mixed = name.format(1, "self_attn.q_proj.lora_B")
    extra = "base_model.model.lm_head.lora_A.weight"

    def spoilt(found):
        found[misshapen] = found[misshapen].T.copy()
        found[mixed] = found[mixed].astype(np.float16)
        return {n: x for n, x in found.items() if n != missing} | {extra: np.ones((2, 2), "f4")}

    with pytest.raises(McrError, match="4 tensors are wrong") as told:
        lora.load(plain, saved(tensors=spoilt))
    line = str(told.value)
    assert f"{missing} is missing" in line
    assert f"{misshapen} is [2, 16], not [16, 2]" in line
    assert f"{extra} is not of these adapters" in line
    assert "q_proj.lora_B.weight and its like are of float16, float32" in line
    with pytest.raises(McrError, match=r"lora_A\.weight is missing"):
        lora.load(plain, saved({"target_modules": "all-linear"}))


def test_a_folder_without_whole_adapters_is_refused_in_one_line(plain, saved, tmp_path):
    with pytest.raises(McrError, match="no such file"):
        lora.load(plain, tmp_path / "nowhere")
    folder = saved(tensors=lambda found: {n: x.astype(np.int32) for n, x in found.items()})
    with pytest.raises(McrError, match="is of dtype I32"):
        lora.load(plain, folder)
    for text, message in [
        ("[]", "not an object"),
        ("{}", "peft_type is missing"),
        ("{", "Expecting"),
    ]:
        (saved(tensors=lambda found: {}) / lora.CONFIG).write_text(text)
        with pytest.raises(McrError, match=message):
            lora.load(plain, folder)
    (folder / lora.CONFIG).unlink()
    with pytest.raises(McrError, match="cannot read"):
        lora.load(plain, folder)
    (folder / lora.TENSORS).write_bytes(b"no tensors here")
    with pytest.raises(McrError, match="not a whole safetensors file"):
        lora.load(plain, folder)


def test_adapters_are_written_whole_or_not_at_all(plain, saved, mount_disk):
    adapted = lora.load(plain, folder := saved())
    with pytest.raises(McrError, match="already there"):
        lora.save(adapted, folder)
    larger = lora.add(plain, LoraConfig(rank=8, alpha=8.0), 0)
    disk = mount_disk("8k")
    with pytest.raises(McrError, match=r"cannot write: .*No space left"):
        lora.save(larger, disk / "out")
    assert list(disk.iterdir()) == []
