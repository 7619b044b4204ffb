"""Weights are read as transformers reads them; a fault is one line with its cause."""

import collections
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_hf
from model_folders import BFLOAT16, in_files, refusal, same, tensors

from mcr_jax.model import hf
from mcr_jax.model.hf import weight_files
from mcr_jax.model.sharding import make_mesh


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
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "gemma3_text"
    assert raw["architectures"] == ["Gemma3ForCausalLM"]
    assert hf.load(tmp_path / "out").config == model.config


def test_a_fused_tensor_is_read_by_parts_and_each_part_once(folder, monkeypatch):
    read, counts = weight_files._read, collections.Counter()

    def counting(slot, block):
        values = read(slot, block)
        counts[slot.name] += values.size
        assert values.size < math.prod(slot.shape) / 2 or "qkv" not in slot.name
        return values

    monkeypatch.setattr(weight_files, "_read", counting)
    hf.load(folder("phi3"), mesh=make_mesh(2, 2, 2))
    assert counts == {name: tensor.size for name, tensor in tensors("phi3").items()}


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
        raw = {name: file for name, file in weights.items() if file}
        (made / hf.INDEX).write_text(json.dumps({"weight_map": raw}))
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
    for part in (f"{q} is missing", f"{k} is [3, 48]", f"{o}.bias is not", f"{o}.weight is of dty"):
        assert part in message


Q = "model.layers.{}.self_attn.q_proj"


@pytest.mark.promise(
    "Quantized weights and unmerged adapters are refused with what to take instead."
)
@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ([Q + ".qweight", Q + ".qzeros"], "the weights are quantized"),
        ([Q + ".lora_A.default.weight"], "adapters stand beside the weights"),
        (["model.layers.{}.mlp.experts.0.up_proj.weight"], "mixture of experts"),
        ([Q + ".bias"], "model.layers.*.self_attn.q_proj.bias is not of this model (3 times)"),
    ],
)
def test_what_is_wrong_in_every_layer_is_reported_once_with_its_cause(folder, names, cause):
    extra = [name.format(layer) for name in names for layer in range(3)]
    broken = folder(tensors=dict.fromkeys(extra, np.zeros(2, np.float32)))
    message = refusal(lambda: hf.load(broken))
    assert cause in message and str(broken) in message
    assert message.count("q_proj") <= 1


def test_another_number_of_layers_and_other_names_are_reported_as_such(folder, tmp_path):
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
