"""Hugging Face folders: the logits of transformers, and every bit there and back."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_hf
from flax import nnx
from model_folders import BFLOAT16, in_files, refusal, same, tensors

from mcr_jax.model import hf, lora, store
from mcr_jax.model.sharding import make_mesh

VARIANTS = tuple(tiny_hf.VARIANTS)


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


@pytest.mark.parametrize("variant", ["llama3", "gemma3", "phi3"])
def test_on_a_mesh_each_device_holds_its_part_only(folder, variant):
    model = hf.load(folder(variant), mesh=make_mesh(2, 2, 2))
    q = model.layers.q[...]
    assert q.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    layers, width, heads, size = q.shape
    part = (layers, width // 2, heads // 2, size)
    assert {shard.data.shape for shard in q.addressable_shards} == {part}


@pytest.mark.parametrize("file_bytes", [hf.FILE_BYTES, 30_000], ids=["one file", "many files"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama3", "qwen2", "qwen3_tied", "gemma3", "mistral", "phi3"])
def test_there_and_back_every_bit_is_the_same(folder, tmp_path, variant, dtype, file_bytes):
    made, out, again = folder(variant, dtype), tmp_path / "out", tmp_path / "again"
    hf.save(hf.load(made), out, file_bytes=file_bytes)
    assert same(in_files(out), tensors(variant, dtype))
    hf.save(hf.load(out, mesh=make_mesh(2, 2, 2)), again)  # reads what it wrote
    assert same(in_files(again), tensors(variant, dtype))
    raw = json.loads((out / "config.json").read_text())
    assert raw["torch_dtype"] == np.dtype(dtype).name


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


def test_a_folder_that_is_taken_is_left_alone(folder, tmp_path):
    model, out = hf.load(folder()), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert str(out) in refusal(lambda: hf.save(model, out))
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_adapters_are_never_dropped_in_silence(folder, tmp_path):
    adapted = lora.add(hf.load(folder()), lora.LoraConfig(rank=2, alpha=4), 0)
    assert "lora.merge" in refusal(lambda: hf.save(adapted, tmp_path / "out"))


@pytest.mark.parametrize("variant", ["llama3", "qwen2_windowed", "qwen3", "gemma3_scaled", "phi3"])
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
