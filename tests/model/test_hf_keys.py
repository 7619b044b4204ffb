"""Keys of config.json that may change the numbers are refused by name; all others pass."""

import json
import logging
import math

import jax
import pytest
import tiny_hf
from published_keys import FOLDERS

from mcr_jax.errors import McrError
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.hf import config_json

PARAMETERS = {  # as the model cards count them, medgemma without its eye
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM2-135M-Instruct from GGUF": 134_515_008,
    "gemma-3-270m-it": 268_098_176,
    "gemma-3-270m-it from GGUF": 268_098_176,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen3-8B, fine-tuned with Unsloth": 8_190_735_360,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "medgemma-4b-it": 3_880_263_168,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
}
LLAMA = tiny_hf.VARIANTS["llama3"]


def read(folder, **keys):
    (folder / "config.json").write_text(json.dumps({**LLAMA, **keys}))
    return config_json.read(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_key_sets_of_published_folders_pass_without_a_warning(name, tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS[name]))
    shapes = abstract_decoder(config_json.read(tmp_path))[1]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_model_name_or_path", "x"),
        ("_quant_by", "x"),
        ("unk_token_id", 3),
        ("suppress_token_ids", [3]),
        ("begin_suppress_tokens_ids", [3]),
        ("unsloth_template", "x"),
        ("attn_implementation", "flash_attention_2"),
        ("attention_dropout", 0.1),
        ("some_bias", False),
        ("expert_count", 0),
        ("rope_notes", ""),
        ("window_sizes", []),
        ("norm_map", {}),
        ("scale_at", None),
        ("residual_gain", 0.0),
    ],
)
def test_a_key_without_bearing_on_the_numbers_passes_in_silence(tmp_path, caplog, key, value):
    assert read(tmp_path, **{key: value}) == config_json.from_json(LLAMA)
    assert not caplog.records


@pytest.mark.parametrize(
    "key",
    [
        "rope_interleaved",
        "no_rope_layers",
        "xRope",
        "rotary_pct",
        "attention_chunk_size",
        "useAttnSink",
        "use_qk_norm",
        "layernorm_epsilon",
        "logits_scaling",
        "query_scalar",
        "embedding_multiplier",
        "residual_multiplier",
        "window_size",
        "n_routed_experts",
        "moe_layers",
        "capping",
        "final_logit_softcap",
        "logit_cap",
        "parallel_residual",
        "use_bias",
        "quantization",
        "quantization_config",
        "position_embedding_type",
    ],
)
@pytest.mark.promise(
    "A `config.json` with a feature that this decoder lacks is refused by the name of the key."
)
def test_a_key_whose_name_speaks_of_what_a_decoder_computes_is_refused_by_name(tmp_path, key):
    with pytest.raises(McrError) as refused:
        read(tmp_path, **{key: 2})
    assert key in str(refused.value) and "\n" not in str(refused.value)


def test_quantized_weights_are_refused_with_their_method_and_what_to_take_instead(tmp_path):
    with pytest.raises(McrError, match=r"quantization_config: .* by awq.* unquantized"):
        read(tmp_path, quantization_config={"quant_method": "awq", "bits": 4})


def test_other_unknown_keys_are_one_warning_however_often_the_file_is_read(tmp_path, caplog):
    odd = {"colour": "blue", "extra_properties": {"a": 1}, "capabilities": ["chat"], "normal": None}
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, **odd) == read(tmp_path, **odd) == config_json.from_json(LLAMA)
    (record,) = caplog.records
    message = record.getMessage()
    assert str(tmp_path) in message and "\n" not in message
    assert "'colour', 'extra_properties', 'capabilities'" in message and "normal" not in message


def test_a_warning_of_many_keys_stays_one_short_line(tmp_path, caplog):
    read(tmp_path, **{"y" * 100_000: 1}, **{f"key{n}\n": n + 1 for n in range(1000)})
    (record,) = caplog.records
    assert "and 993 more" in record.getMessage() and len(record.getMessage()) < 500
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("keys", [{"rope" + "_" * 100_000: 1}, {"mlp_bias": ["x"] * 100_000}])
def test_a_refusal_stays_one_short_line(tmp_path, keys):
    with pytest.raises(McrError) as refused:
        read(tmp_path, **keys)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


@pytest.mark.promise(
    "A key is refused only if it may change the numbers; other unknown keys are one warning, "
    "and `--config.model.ignore=KEY` ignores one."
)
def test_a_key_can_be_passed_over_by_name():
    keys = {**LLAMA, "residual_multiplier": 2, "quantization_config": {"bits": 4}}
    ignore = ("residual_multiplier", "quantization_config")
    assert config_json.from_json(keys, ignore) == config_json.from_json(LLAMA)
