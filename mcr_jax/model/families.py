"""Model families as data: one record holds everything in which a family differs from the others.

No other code names a family. To add one that these fields describe, add a record to `FAMILIES` and
a tiny model to tests/model/tiny_hf.py. Tensors outside the layers are in `hf.tensor_names`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from mcr_jax.model.shape import DecoderConfig

# Tensor name of each parameter after `model.layers.N.`, in the order of the files.
_LAYER_TENSORS: Mapping[str, str] = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k": "self_attn.k_proj.weight",
    "k_bias": "self_attn.k_proj.bias",
    "v": "self_attn.v_proj.weight",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Meaning of one `model_type` of config.json.

    Attributes:
      architecture: class of transformers that loads it.
      defaults: values that transformers takes for missing keys.
      fixed: fields of `DecoderConfig` that are the same in every model of the family.
      activation_key: key of the gate's activation.
      windows: which layers have the sliding window: "none"; "all", unless `sliding_window` is null;
        "switched", those from `max_window_layers` on if `use_sliding_window` is true; "pattern",
        all but every `sliding_window_pattern`-th. `layer_types` overrides the last two.
      rope_by_layer_type: whether layers with a window have a rope of their own.
      rope_types: the kinds of rope that transformers computes in this family.
      attention_scalar_key: key of the number whose inverse root scales the scores; "" is the head
        size.
      scaled_embedding: whether embeddings are multiplied by the root of the width.
      tensors: names of layer tensors that differ from Llama's. Parameters with the same name share
        one tensor, their rows stacked in order.
      harmless_keys: keys that bear on no logit in this family, though they might in another.
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation_key: str = "hidden_act"
    windows: Literal["none", "all", "switched", "pattern"] = "none"
    rope_by_layer_type: bool = False
    rope_types: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    attention_scalar_key: str = ""
    scaled_embedding: bool = False
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    harmless_keys: tuple[str, ...] = ()


_QWEN_DEFAULTS = {
    "hidden_act": "silu",
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", defaults={"hidden_act": "silu"}),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={"hidden_act": "silu", "num_key_value_heads": 8, "sliding_window": 4096},
        windows="all",
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        defaults={"hidden_act": "silu", "rms_norm_eps": 1e-5},
        windows="all",
        rope_types=("default",),
        tensors={
            **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj.weight"),
            **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
        },
        harmless_keys=("original_max_position_embeddings",),  # read by LongRoPE alone
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN_DEFAULTS,
        fixed={"qkv_bias": True},
        windows="switched",
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        fixed={"qk_norm": True},
        windows="switched",
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        defaults={
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        fixed={"qk_norm": True, "sandwich_norm": True, "norm_offset": 1.0},
        activation_key="hidden_activation",
        windows="pattern",
        rope_by_layer_type=True,
        attention_scalar_key="query_pre_attn_scalar",
        scaled_embedding=True,
        tensors={
            "attention_post_norm": "post_attention_layernorm.weight",
            "mlp_norm": "pre_feedforward_layernorm.weight",
            "mlp_post_norm": "post_feedforward_layernorm.weight",
        },
    ),
}
# Multimodal models whose `text_config` is a decoder: the model_type of that half.
MULTIMODAL: Mapping[str, str] = {"gemma3": "gemma3_text"}

_TRAITS = {trait for family in FAMILIES.values() for trait in family.fixed}


def model_type(config: DecoderConfig) -> str | None:
    """Returns the family in the decoder's config.json, else the first with its `fixed` fields.

    None if no family has them. Windows and activation are ignored here: `hf.config_json.to_json`
    checks all fields.
    """
    if config.source:
        return json.loads(config.source)["model_type"]
    for name, family in FAMILIES.items():
        if all(getattr(config, trait) == family.fixed.get(trait, 0) for trait in _TRAITS):
            return name
    return None


def layer_tensors(config: DecoderConfig) -> Mapping[str, str]:
    """Tensor of each parameter of a layer in the files of a decoder's family."""
    name = model_type(config)
    return {**_LAYER_TENSORS, **(FAMILIES[name].tensors if name else {})}
