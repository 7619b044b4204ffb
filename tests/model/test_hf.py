"""Hugging Face folders: the logits of transformers, every bit there and back, faults named."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_hf
from flax import nnx

from mcr_jax.errors import McrError
from mcr_jax.model import hf, lora, store
from mcr_jax.model.sharding import make_mesh

VARIANTS = tuple(tiny_hf.VARIANTS)
SHAPES = json.loads((tiny_hf.GOLDEN / "shapes.json").read_text())
BFLOAT16 = ml_dtypes.bfloat16


def tensors(variant: str, dtype=np.float32) -> dict[str, np.ndarray]:
    return {k: v.astype(dtype) for k, v in tiny_hf.weights(variant, SHAPES[variant]).items()}


def in_files(folder) -> dict[str, np.ndarray]:
    """Every tensor of a folder, read without this project."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def refusal(act) -> str:
    with pytest.raises(McrError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a variant."""

    def make(variant="llama3", dtype=np.float32, name="model", **changes):
        made = tensors(variant, dtype)
        for tensor, value in changes.pop("tensors", {}).items():
            made.pop(tensor, None)
            if value is not None:
                made[tensor] = value
        return tiny_hf.write(tmp_path / name, {**tiny_hf.VARIANTS[variant], **changes}, made)

    return make


@pytest.fixture(params=["one device", "2x2x2"])
def mesh(request):
    return None if request.param == "one device" else make_mesh(2, 2, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logits_are_those_of_transformers(folder, variant, mesh):
    with np.load(tiny_hf.GOLDEN / "logits.npz") as golden:
        want = golden[variant]
    graph, params = nnx.split(hf.load(folder(variant), mesh=mesh))
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    got = np.asarray(forward(params, jnp.asarray(tiny_hf.tokens())))[:, tiny_hf.PLACES]
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 1e-4
    assert np.abs(want).max() > 1  # or the bound would say little


@pytest.mark.parametrize("variant", ["llama3", "gemma3"])
def test_on_a_mesh_each_device_holds_its_part_only(folder, variant):
    model = hf.load(folder(variant), mesh=make_mesh(2, 2, 2))
    q = model.layers.q[...]
    assert q.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    layers, width, heads, size = q.shape
    part = (layers, width // 2, heads // 2, size)
    assert {shard.data.shape for shard in q.addressable_shards} == {part}


@pytest.mark.parametrize("file_bytes", [hf.FILE_BYTES, 30_000], ids=["one file", "many files"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama3", "qwen2", "qwen3_tied", "gemma3"])
def test_there_and_back_every_bit_is_the_same(folder, tmp_path, variant, dtype, file_bytes):
    made, out, again = folder(variant, dtype), tmp_path / "out", tmp_path / "again"
    hf.save(hf.load(made), out, file_bytes=file_bytes)
    assert same(in_files(out), tensors(variant, dtype))
    hf.save(hf.load(out, mesh=make_mesh(2, 2, 2)), again)  # reads what it wrote
    assert same(in_files(again), tensors(variant, dtype))
    told = json.loads((out / "config.json").read_text())
    assert told["torch_dtype"] == np.dtype(dtype).name


def test_files_stay_below_their_size_and_the_index_knows_them(folder, tmp_path):
    hf.save(hf.load(folder()), tmp_path / "out", file_bytes=30_000)
    index = json.loads((tmp_path / "out" / hf.INDEX).read_text())
    want = tensors("llama3")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in want.values())
    assert index["weight_map"].keys() == want.keys()
    readable = (tmp_path / "out").stat().st_mode & 0o444
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.stat().st_mode & 0o444 == readable
        held = safetensors.numpy.load_file(path)
        assert sum(t.nbytes for t in held.values()) <= 30_000 or len(held) == 1
        assert {name for name, file in index["weight_map"].items() if file == path.name} == {*held}


@pytest.mark.parametrize(("stored", "asked"), [(np.float32, "bfloat16"), (BFLOAT16, "float32")])
def test_a_dtype_asked_for_is_cast_to(folder, stored, asked):
    model = hf.load(folder(dtype=stored), dtype=asked)
    kept = hf.load(folder(dtype=stored))
    assert {x.dtype.name for x in jax.tree.leaves(nnx.state(model))} == {asked}
    np.testing.assert_array_equal(model.layers.q[...], kept.layers.q[...].astype(asked))
    assert model.config.dtype == asked
    assert kept.config.dtype == np.dtype(stored).name


def test_a_model_is_bfloat16_throughout_and_its_logits_float32(folder):
    model = hf.load(folder("gemma3", BFLOAT16))
    tokens = jnp.asarray(tiny_hf.tokens()[:, :16])
    assert model.hidden(tokens)[0].dtype == jnp.bfloat16
    logits = model(tokens)
    assert logits.dtype == jnp.float32
    exact = hf.load(folder("gemma3"), dtype="float32")(tokens)
    assert np.corrcoef(np.ravel(logits), np.ravel(exact))[0, 1] > 0.999


@pytest.mark.parametrize(
    "prefix", ["language_model.model.", "model.language_model.", "language_model."]
)
def test_the_text_half_of_a_multimodal_gemma_is_taken_whatever_its_prefix(tmp_path, prefix):
    text = {**tiny_hf.VARIANTS["gemma3"]}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    plain = tensors("gemma3")
    named = {prefix + name.removeprefix("model."): value for name, value in plain.items()}
    eye = "model." * prefix.startswith("model.")
    for name in ("vision_tower.embeddings.weight", "multi_modal_projector.norm.weight"):
        named[eye + name] = np.ones((2, 2), np.float32)
    model = hf.load(tiny_hf.write(tmp_path / "in", config, named))
    hf.save(model, tmp_path / "out")
    assert same(in_files(tmp_path / "out"), plain)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["model_type"] == "gemma3_text"
    assert told["architectures"] == ["Gemma3ForCausalLM"]
    assert hf.load(tmp_path / "out").config == model.config


def test_a_tied_model_may_hold_its_head_once_more_but_not_another_one(folder):
    table = tensors("qwen2_tied")["model.embed_tokens.weight"]
    hf.load(folder("qwen2_tied", tensors={"lm_head.weight": table.copy()}))
    other = folder("qwen2_tied", name="other", tensors={"lm_head.weight": table + 1})
    message = refusal(lambda: hf.load(other))
    assert "lm_head.weight differs from model.embed_tokens.weight" in message and "tied" in message


def only_the_head(name):
    return name.replace("model.embed_tokens", "lm_head")


NAMINGS = {
    "only the head": only_the_head,
    "without the head's class": lambda name: name.removeprefix("model."),
    "both": lambda name: only_the_head(name).removeprefix("model."),
    "compiled": lambda name: f"_orig_mod.{name}",
    "layers compiled": lambda name: re.sub(r"(layers.\d+)", r"\1._orig_mod", name),
    "in parallel": lambda name: f"module.{name}",
    "in shards": lambda name: "_fsdp_wrapped_module." + name.replace("mlp.", "mlp._orig_mod."),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_names_that_saving_leaves_behind_are_read_and_exported_as_transformers_has_them(
    tmp_path, naming
):
    want = tensors("qwen2_tied")
    named = {NAMINGS[naming](name): value for name, value in want.items()}
    assert named.keys() != want.keys()
    hf.save(
        hf.load(tiny_hf.write(tmp_path / "in", tiny_hf.VARIANTS["qwen2_tied"], named)),
        tmp_path / "out",
    )
    assert same(in_files(tmp_path / "out"), want)


def test_two_names_of_one_parameter_are_refused(folder):
    norm = "model.norm.weight"
    twice = folder(tensors={f"_orig_mod.{norm}": tensors("llama3")[norm] + 1})
    message = refusal(lambda: hf.load(twice))
    assert f"{norm} and _orig_mod.{norm}" in message or f"_orig_mod.{norm} and {norm}" in message


def test_of_a_tensor_in_two_shards_the_one_counts_that_the_index_names(folder):
    made, norm = folder(), "model.norm.weight"
    whole = tensors("llama3")
    (made / hf.SINGLE).unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    safetensors.numpy.save_file(whole, made / files[0])
    safetensors.numpy.save_file({norm: whole[norm] + 1}, made / files[1])

    def index(**where):
        weights = {**dict.fromkeys(whole, files[0]), "spare": files[1], norm: None, **where}
        told = {name: file for name, file in weights.items() if file}
        (made / hf.INDEX).write_text(json.dumps({"weight_map": told}))
        return made

    for file, more in ((files[0], 0), (files[1], 1)):
        norms = hf.load(index(**{norm: file})).final_norm[...]
        np.testing.assert_array_equal(norms, whole[norm] + more)
    message = refusal(lambda: hf.load(index()))
    assert f"{norm} stands in {files[0]}, {files[1]}" in message and hf.INDEX in message


def test_missing_extra_and_misshapen_tensors_are_one_error_that_lists_them_all(folder):
    q, k = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.k_proj.weight"
    o = "model.layers.0.self_attn.o_proj"
    broken = folder(
        tensors={
            q: None,
            k: np.zeros((3, 48), np.float32),
            f"{o}.bias": np.zeros(48, np.float32),
            f"{o}.weight": np.zeros((48, 48), np.int8),
        }
    )
    message = refusal(lambda: hf.load(broken))
    assert str(broken) in message and "4 tensors" in message
    for told in (f"{q} is missing", f"{k} is [3, 48]", f"{o}.bias is not", f"{o}.weight is of dty"):
        assert told in message


Q = "model.layers.{}.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ([Q + ".qweight", Q + ".qzeros"], "the weights are quantized"),
        ([Q + ".lora_A.default.weight"], "adapters stand beside the weights"),
        (["model.layers.{}.mlp.experts.0.up_proj.weight"], "mixture of experts"),
        ([Q + ".bias"], "model.layers.*.self_attn.q_proj.bias is not of this model (3 times)"),
    ],
)
def test_what_is_wrong_in_every_layer_is_told_once_with_its_cause(folder, names, cause):
    extra = [name.format(layer) for name in names for layer in range(3)]
    broken = folder(tensors=dict.fromkeys(extra, np.zeros(2, np.float32)))
    message = refusal(lambda: hf.load(broken))
    assert cause in message and str(broken) in message
    assert message.count("q_proj") <= 1


def test_another_number_of_layers_and_other_names_are_told_as_such(folder, tmp_path):
    message = refusal(lambda: hf.load(folder(num_hidden_layers=5)))
    assert "the files hold 3 layers, and config.json says 5" in message
    gpt = {"transformer.wte.weight": np.zeros((2, 2), np.float32)}
    other = tiny_hf.write(tmp_path / "gpt", tiny_hf.VARIANTS["llama3"], gpt)
    assert "none of the model's tensors, but transformer.wte" in refusal(lambda: hf.load(other))


def test_names_from_a_file_cannot_break_the_line_or_the_terminal(folder):
    odd = {f"lm_head.{'x' * 10_000}": np.zeros(2, "f4"), "a\n\x1b[31m": np.zeros(2, "f4")}
    message = refusal(lambda: hf.load(folder(tensors=odd)))
    assert "a??[31m is not of this model" in message
    assert message.isprintable() and len(message) < 600


def test_many_kinds_of_faults_are_one_short_line(folder):
    names = list(tensors("llama3"))
    message = refusal(lambda: hf.load(folder(tensors=dict.fromkeys(names[:-1]))))
    assert "kinds more" in message and len(message) < 600


def test_layers_of_several_dtypes_take_the_widest_of_them(folder):
    name, exact = "model.layers.1.mlp.up_proj.weight", tensors("llama3")
    narrow = {name: exact[name].astype(BFLOAT16)}
    up = hf.load(folder(tensors=narrow)).layers.up[...]
    assert up.dtype == jnp.float32
    np.testing.assert_array_equal(up[0], exact[name.replace("1", "0")].T)
    np.testing.assert_array_equal(up[1], narrow[name].T.astype(np.float32))


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_named(folder, cut):
    path = folder() / hf.SINGLE
    path.write_bytes(path.read_bytes()[:cut])
    assert str(path) in refusal(lambda: hf.load(path.parent))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[96,48]', b'"shape":[96,47]'),
        (b'"dtype":"F32"', b'"dtype":"F64"'),
        (b'"data_offsets":[0,', b'"data_offsets":[4,'),
        (b'{"', b'"{'),
    ],
)
def test_a_tampered_header_is_named(folder, old, new):
    path = folder() / hf.SINGLE
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    assert str(path) in refusal(lambda: hf.load(path.parent))


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
        '{"weight_map": {"a": "../model/model.safetensors"}}',
    ],
)
def test_a_broken_index_is_named(folder, index):
    path = folder() / hf.INDEX
    path.with_name(hf.SINGLE).rename(path.with_name("weights.safetensors"))
    path.write_text(index.replace("model/model.", "model/weights."))
    assert str(path) in refusal(lambda: hf.load(path.parent))


def test_one_file_counts_before_an_index_that_an_older_model_left(folder):
    made = folder()
    before = hf.load(made).embedding[...]
    (made / hf.INDEX).write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    np.testing.assert_array_equal(hf.load(made).embedding[...], before)


def test_a_file_of_mixed_dtypes_computes_about_what_the_exact_one_does(folder):
    made = tensors("qwen2", BFLOAT16)
    exact = tensors("qwen2")
    mixed = {n: exact[n] for n in made if "down_proj" in n or "v_proj" in n or "norm" in n}
    model = hf.load(folder("qwen2", BFLOAT16, tensors=mixed))
    assert model.layers.down[...].dtype == jnp.float32
    tokens = jnp.asarray(tiny_hf.tokens()[:, :16])
    want = hf.load(folder("qwen2", name="exact"))(tokens)
    assert np.corrcoef(np.ravel(model(tokens)), np.ravel(want))[0, 1] > 0.999


def test_a_digest_changes_with_weights_config_and_tokenizer(folder):
    made = folder()
    before = hf.digest(made)
    assert before == hf.digest(made)
    digests = {before}
    (made / "tokenizer_config.json").write_text("{}")
    digests.add(hf.digest(made))
    (made / "config.json").write_text("{}")
    digests.add(hf.digest(made))
    weights = bytearray((made / hf.SINGLE).read_bytes())
    weights[-1] ^= 1
    (made / hf.SINGLE).write_bytes(weights)
    digests.add(hf.digest(made))
    assert len(digests) == 4


@pytest.mark.parametrize("place", [".", "link", "mounted"])
def test_an_empty_folder_is_filled_whatever_it_is(folder, tmp_path, monkeypatch, request, place):
    model = hf.load(folder())
    out = tmp_path / "empty"
    if place == "mounted":
        out = request.getfixturevalue("mount_disk")("4m")
    else:
        out.mkdir()
        monkeypatch.chdir(out)
    if place == "link":
        (tmp_path / "link").symlink_to(out)
    hf.save(model, {".": ".", "link": tmp_path / "link", "mounted": out}[place])
    assert same(in_files(out), tensors("llama3"))
    assert {path.name for path in out.iterdir()} == {"config.json", hf.SINGLE}


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        (None, "neither"),
        ("adapter_model.safetensors", "merge them into their base model"),
        ("model-00001-of-00002.safetensors", f"without {hf.INDEX}"),
        ("consolidated.safetensors", "not in transformers' layout"),
        ("pytorch_model-00001-of-00002.bin", "is pickled"),
        ("model-Q4.gguf", "is GGUF"),
    ],
)
def test_a_folder_without_weights_is_named_with_what_is_there_instead(folder, file, advice):
    made = folder()
    (made / hf.SINGLE).rename(made / (file or "notes.txt"))
    message = refusal(lambda: hf.load(made))
    assert str(made) in message and advice in message and (file or "") in message


def test_a_folder_that_is_taken_is_left_alone(folder, tmp_path):
    model, out = hf.load(folder()), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert str(out) in refusal(lambda: hf.save(model, out))
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_adapters_are_never_dropped_in_silence(folder, tmp_path):
    adapted = lora.add(hf.load(folder()), lora.LoraConfig(rank=2, alpha=4), 0)
    assert "lora.merge" in refusal(lambda: hf.save(adapted, tmp_path / "out"))


@pytest.mark.parametrize("variant", ["llama3", "qwen2_windowed", "qwen3", "gemma3_scaled"])
def test_a_packed_row_gives_each_example_the_logits_it_has_alone(folder, variant):
    model, tokens = hf.load(folder(variant)), tiny_hf.tokens()[:, :300]
    alone = np.asarray(model(jnp.asarray(tokens)))
    first, second = 180, 220
    packed = np.concatenate([tokens[0, :first], tokens[1, :second]])[None]
    positions = np.concatenate([np.arange(first), np.arange(second)])[None]
    segments = np.repeat([1, 2], [first, second])[None]
    together = np.asarray(model(*map(jnp.asarray, (packed, positions, segments))))[0]
    np.testing.assert_allclose(together[:first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[first:], alone[1, :second], atol=1e-4)


def test_a_full_disk_leaves_nothing_behind(folder, small_disk):
    model, out = hf.load(folder("gemma3")), small_disk / "out"
    message = refusal(lambda: hf.save(model, out))
    assert str(out) in message and "o space left" in message
    assert list(small_disk.iterdir()) == []


def test_the_tokenizer_s_files_go_along(folder, tmp_path):
    made = folder()
    (made / "tokenizer.json").write_text('{"made": "up"}')
    (made / "chat_template.jinja").write_text("{{ messages }}")
    (made / "training_args.bin").write_text("not wanted")
    hf.save(hf.load(made), tmp_path / "out")
    carried = {p.name for p in (tmp_path / "out").iterdir()} - {"model.safetensors", "config.json"}
    assert carried == {"tokenizer.json", "chat_template.jinja"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"made": "up"}'


def test_a_decoder_made_here_is_saved_with_its_embedding_scale_in_the_table(tiny_shape, tmp_path):
    shape = dataclasses.replace(tiny_shape, tied=False, qk_norm=True)
    model = store.untrained(shape, 3)
    hf.save(model, tmp_path / "out")
    tokens = jnp.arange(12)[None]
    again = hf.load(tmp_path / "out")
    assert again.config.embedding_scale == 1
    np.testing.assert_allclose(again(tokens), model(tokens), atol=1e-5)
    tied = store.untrained(tiny_shape, 3)
    assert "no family" in refusal(lambda: hf.save(tied, tmp_path / "tied"))
    assert not (tmp_path / "tied").exists()


_PEAK = """
import sys
import jax
from mcr_jax.model import hf
from mcr_jax.model.sharding import make_mesh

jax.devices()
def peak():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024  # it is in KiB
before = peak()
model = hf.load(sys.argv[1], mesh=make_mesh(1, 4, 2))
jax.block_until_ready(jax.tree.leaves(model))
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    config = {**tiny_hf.VARIANTS["llama3"], **sizes, "vocab_size": 8192}
    rows = {"gate_proj": 4096, "up_proj": 4096, "down_proj": 1024, "q_proj": 1024, "o_proj": 1024}
    shapes = {"model.embed_tokens.weight": (8192, 1024), "lm_head.weight": (8192, 1024)}
    shapes["model.norm.weight"] = (1024,)
    for layer in range(8):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (1024,)
        for name, out in {**rows, "k_proj": 512, "v_proj": 512}.items():
            block = "mlp" if name[0] in "gud" else "self_attn"
            into = 4096 if name == "down_proj" else 1024
            shapes[f"model.layers.{layer}.{block}.{name}.weight"] = (out, into)
    made = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    size = sum(tensor.nbytes for tensor in made.values())
    assert size > 500e6
    folder = tiny_hf.write(tmp_path / "large", config, made)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < size + 250e6
