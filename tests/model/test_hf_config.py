"""config.json means to this decoder what it means to transformers, or is refused by name."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_hf
from hypothesis import given
from hypothesis import strategies as st
from published_keys import FOLDERS

from mcr_jax.errors import McrError
from mcr_jax.model.hf import config_json
from mcr_jax.model.shape import DecoderConfig, Rope, Yarn

VARIANTS = tuple(tiny_hf.VARIANTS)
DIALECTS = {
    major: json.loads((tiny_hf.GOLDEN / f"transformers{major}.json").read_text())["configs"]
    for major in (4, 5)
}


def changed(variant: str, **keys) -> dict:
    raw = {**tiny_hf.VARIANTS[variant], **keys}
    return {key: value for key, value in raw.items() if value is not ...}


def refusal(raw) -> str:
    with pytest.raises(ValueError) as refused:
        config_json.from_json(raw)
    return str(refused.value)


@pytest.mark.parametrize("major", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_dialects_of_transformers_mean_the_same(variant, major):
    published = config_json.from_json(tiny_hf.VARIANTS[variant])
    assert config_json.from_json(DIALECTS[major][variant]) == published


def test_a_multimodal_gemma_3_of_few_words_takes_the_family_s_defaults():
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    c = config_json.from_json({**FOLDERS["medgemma-4b-it"], "text_config": text})
    assert (c.vocab_size, c.heads, c.kv_heads, c.head_dim) == (262_208, 8, 4, 256)
    assert c.rope == Rope(theta=1e6, scaling="linear", factor=8.0)
    assert c.local_rope == Rope(theta=1e4)
    assert (c.window, c.local_layers) == (1024, ((True,) * 5 + (False,)) * 5 + (True,) * 4)
    assert c.embedding_scale == math.sqrt(2560)
    assert c.attention_scale == 256**-0.5
    assert c.tied and c.qk_norm and c.sandwich_norm and c.norm_offset == 1
    assert c.activation == "gelu_tanh"
    assert c.dtype == "bfloat16"


def test_a_qwen_whose_window_is_not_used_has_none():
    raw = changed("qwen2", use_sliding_window=False, sliding_window=131072, max_window_layers=28)
    assert config_json.from_json(raw) == config_json.from_json(tiny_hf.VARIANTS["qwen2"])


@pytest.mark.promise(
    "A `config.json` with a feature that this decoder lacks is refused by the name of the key."
)
@pytest.mark.parametrize(
    ("variant", "keys", "names"),
    [
        ("llama3", {"model_type": "mamba"}, "mamba"),
        ("llama3", {"model_type": ...}, "model_type"),
        ("llama3", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama3", {"hidden_act": ["silu"]}, "hidden_act"),
        ("llama3", {"model_type": ["llama"]}, "model_type"),
        ("llama3", {"num_attention_heads": 0}, "num_attention_heads"),
        ("llama3", {"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ("llama3", {"vocab_size": -1}, "vocab_size"),
        ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma3", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("llama3", {"rope_scaling": {"rope_type": ["linear"], "factor": 2}}, "rope_scaling"),
        ("llama3", {"attention_bias": True}, "attention_bias"),
        ("llama3", {"mlp_bias": True}, "mlp_bias"),
        ("llama3", {"is_causal": False}, "is_causal"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama3", {"sliding_window": 128}, "sliding_window"),
        ("llama3", {"hidden_size": ...}, "hidden_size"),
        ("llama3", {"hidden_size": "48"}, "hidden_size"),
        ("llama3", {"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ("llama3", {"num_attention_heads": 5}, "num_attention_heads"),
        ("llama3", {"num_key_value_heads": 3}, "kv_heads"),
        ("llama3", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("llama3", {"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ("llama3", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ("llama3", {"rope_scaling": {"rope_type": "yarn", "attn_factor": 4.0}}, "attn_factor"),
        ("llama3", {"rope_scaling": {"rope_type": "yarn", "beta_fast": 0}}, "beta_fast"),
        ("llama3", {"rope_scaling": {"rope_type": "yarn", "truncate": 1}}, "truncate"),
        ("llama3", {"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 1}, "theta"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "truncate": False}}, "truncate"),
        ("gemma3", {"sliding_window": None}, "sliding_window"),
        ("llama3", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama3", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 1}}, "beta_fast"),
        ("llama3", {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "linear/llama3"),
        ("llama3", {"rope_scaling": [1]}, "rope_scaling"),
        ("llama3", {"rope_scaling": {"type": "linear", "factor": -1}}, "factor"),
        ("llama3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("qwen2_windowed", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2_windowed", {"layer_types": ["full_attention", "chunked", "x"]}, "chunked"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"sliding_window": 0}, "window"),
        ("gemma3", {"rope_scaling": ..., "rope_parameters": {"rope_theta": 1e6}}, "by layer type"),
        ("mistral", {"use_sliding_window": False}, "use_sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 6}}, "longrope"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0] * 6}}, "'su'"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("mistral", {"original_max_position_embeddings": 64}, "original_max_position_embeddings"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(variant, keys, names):
    message = refusal(changed(variant, **keys))
    assert names in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama"}', None])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(McrError) as refused:
        config_json.read(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_again_is_what_was_read_but_for_the_dtype(variant):
    raw = tiny_hf.VARIANTS[variant]
    again = config_json.to_json(config_json.from_json(raw), "bfloat16")
    assert again.pop("architectures")[0].endswith("ForCausalLM")
    assert again == raw | {"torch_dtype": "bfloat16"}


def test_a_decoder_that_is_no_longer_what_its_file_says_is_not_written():
    read = config_json.from_json(tiny_hf.VARIANTS["gemma3"])
    for change in ({"window": 8}, {"norm_eps": 1e-2}, {"rope": Rope(theta=77.0)}):
        with pytest.raises(ValueError, match=r"no longer what its config\.json says"):
            config_json.to_json(dataclasses.replace(read, **change), "float32")
    config_json.to_json(dataclasses.replace(read, attention="xla"), "bfloat16")


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("llama", Rope(theta=5e5, scaling="llama3", factor=8.0, original_length=64)),
        ("qwen2", Rope(scaling="linear", factor=2.5)),
        ("qwen3", Yarn(factor=4.0, original_length=64, attention_factor=1.2, truncate=False)),
    ],
)
def test_a_decoder_made_here_is_written_as_the_family_that_computes_it(kind, rope):
    sizes = {"vocab_size": 11, "layers": 2, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 6}
    traits = {"qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3", "tied": False}
    config = DecoderConfig(**sizes, mlp_width=12, rope=rope, **traits)
    raw = config_json.to_json(config, "float32")
    assert raw["model_type"] == kind
    assert config_json.from_json(raw) == config


@pytest.mark.parametrize("odd", [{"embedding_scale": 2.0}, {"norm_offset": 1.0, "tied": False}])
def test_a_decoder_that_no_family_computes_is_not_written(odd):
    sizes = {"vocab_size": 11, "layers": 2, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 6}
    with pytest.raises(ValueError, match="no family"):
        config_json.to_json(DecoderConfig(**sizes, mlp_width=12, **odd), "float32")


@pytest.mark.parametrize("number", range(len(tiny_hf.ROPES)))
@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
def test_a_rope_is_that_of_transformers_whichever_keys_it_names(number, dialect):
    raw = dict(tiny_hf.ROPES[number])
    keys = {"max_position_embeddings": tiny_hf.MAX_LENGTH, "rope_theta": raw["rope_theta"]}
    if dialect == "rope_scaling":
        del raw["rope_theta"]
        raw["type"] = raw.pop("rope_type")
    rope = config_json.from_json(changed("qwen3", **keys, **{dialect: raw})).rope
    want = json.loads((tiny_hf.GOLDEN / "ropes.json").read_text())[number]
    frequencies = np.asarray(want["frequencies"], np.float32)
    np.testing.assert_array_max_ulp(rope.frequencies(tiny_hf.HEAD_DIM), frequencies, 1)
    assert rope.attention_factor == pytest.approx(want["attention_factor"], rel=1e-12)


def test_a_rope_in_both_dialects_is_read_where_they_agree():
    scaling = {"rope_type": "linear", "factor": 2.0}
    both = {"rope_scaling": scaling, "rope_parameters": {**scaling, "rope_theta": 1e6}}
    raw = changed("qwen3", **both)
    assert config_json.from_json(raw).rope == Rope(theta=1e6, scaling="linear", factor=2.0)
    assert "both there and differ" in refusal({**raw, "rope_theta": 7.0})


def test_null_says_that_there_is_no_window_and_a_key_head_per_query_head():
    raw = changed("qwen2_windowed", sliding_window=None, num_key_value_heads=None)
    config = config_json.from_json(raw)
    assert (config.window, config.local_layers, config.kv_heads) == (None, (), config.heads)


def test_a_mistral_has_its_window_in_all_layers_and_a_default_one():
    layers = tiny_hf.VARIANTS["mistral"]["num_hidden_layers"]
    for keys, window in (({}, 100), ({"sliding_window": ...}, 4096)):
        config = config_json.from_json(changed("mistral", **keys))
        assert (config.window, config.local_layers) == (window, (True,) * layers)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1])
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["rope_type", "factor"]), inner)
    ),
    max_leaves=8,
)
_KEYS = sorted({key for major in DIALECTS.values() for raw in major.values() for key in raw})


@given(st.sampled_from(VARIANTS), st.sampled_from([4, 5]), st.sampled_from(_KEYS), _JSON)
def test_whatever_stands_at_a_key_it_is_a_decoder_or_one_line(
    tmp_path_factory, variant, major, key, value
):
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_text(json.dumps({**DIALECTS[major][variant], key: value}))
    try:
        config_json.read(folder)
    except McrError as error:
        assert "\n" not in str(error)
