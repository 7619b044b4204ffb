"""Files of adapters are those of PEFT; wrong ones are one line with their cause."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_hf
from lora_models import SPECS, random_adapters, run, spread

from mcr_jax.errors import McrError
from mcr_jax.model import hf, lora
from mcr_jax.model.shape import LoraConfig
from mcr_jax.model.sharding import make_mesh

with open(tiny_hf.GOLDEN / "lora.json", encoding="utf-8") as file:
    PEFT = json.load(file)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Writes the folder of a tiny model by name, and one of adapters for it as PEFT does."""

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
    raw = json.loads((tmp_path / "out" / lora.CONFIG).read_text())
    peft = dict(PEFT["configs"][name])
    assert raw.pop("base_model_name_or_path") == str(base)
    ends = {key.split(".")[-3] for key in PEFT["shapes"][name]}
    assert set(raw.pop("target_modules")) == ends
    assert raw == {key: peft[key] for key in raw}


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


@pytest.fixture(scope="module")
def kept(plain, tmp_path_factory):
    """A folder of adapters on q and down."""
    folder = tmp_path_factory.mktemp("kept") / "adapters"
    lora.save(random_adapters(plain, LoraConfig(rank=2, alpha=4, targets=("q", "down"))), folder)
    return folder


@pytest.fixture
def saved(kept, tmp_path):
    """Returns a function that rewrites the two files in a copy of `kept` and returns its folder."""
    folder = shutil.copytree(kept, tmp_path / "adapters")

    def rewrite(config=None, tensors=None):
        if config is not None:
            raw = json.loads((folder / lora.CONFIG).read_text()) | config
            (folder / lora.CONFIG).write_text(json.dumps(raw))
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
    with pytest.raises(McrError, match=own.get(key, key)) as refused:
        lora.load(plain, saved({key: value}))
    assert "\n" not in str(refused.value) and lora.CONFIG in str(refused.value)


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

    with pytest.raises(McrError, match="4 tensors are wrong") as refused:
        lora.load(plain, saved(tensors=spoilt))
    line = str(refused.value)
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
