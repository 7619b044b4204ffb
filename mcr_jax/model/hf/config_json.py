"""config.json of a Hugging Face folder to `DecoderConfig` and back.

Two dialects are read: transformers 4, in which the published weights are (`rope_theta`,
`rope_scaling`, `rope_local_base_freq`, `sliding_window_pattern`), and transformers 5
(`rope_parameters`, for Gemma 3 one per layer type, and `layer_types`). `config_keys` refuses the
keys that may change the numbers and are not read here.
"""

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mcr_jax.errors import McrError
from mcr_jax.model.hf import config_keys, rope_config
from mcr_jax.model.hf.config_keys import flag, number, shown
from mcr_jax.model.hf.rope_config import GLOBAL, LOCAL
from mcr_jax.model.shape import DecoderConfig

FILE = "config.json"
DTYPES = ("float32", "bfloat16", "float16")
_MOST_LAYERS = 10_000
_LONGEST = 400  # characters of an error, which may quote the file
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_NULLS = ("num_key_value_heads", "sliding_window")  # null there is not the default: it means none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What one `model_type` means.

    Attributes:
      architecture: the class of transformers that loads it.
      defaults: what transformers takes for a key that is not there.
      fixed: what the decoder has for every model of the family.
      activation_key: where the gate's activation stands.
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    activation_key: str = "hidden_act"


_QWEN_DEFAULTS = {
    "hidden_act": "silu",
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA3_DEFAULTS = {
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
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", defaults={"hidden_act": "silu"}, fixed={}),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN_DEFAULTS,
        fixed={"qkv_bias": True},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        fixed={"qk_norm": True},
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        defaults=_GEMMA3_DEFAULTS,
        fixed={"qk_norm": True, "sandwich_norm": True, "norm_offset": 1.0},
        activation_key="hidden_activation",
    ),
}
MULTIMODAL = "gemma3"  # Gemma3ForConditionalGeneration: its text half is a gemma3_text


def read(folder: str | Path, ignore: Collection[str] = ()) -> DecoderConfig:
    """The decoder's shape from FOLDER/config.json; unknown keys that pass are one warning.

    Args:
      folder: in Hugging Face's format.
      ignore: keys to pass over in silence although they are unknown here.

    Raises:
      McrError: the file is missing or broken, or says something this decoder is not.
    """
    path = Path(folder) / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise McrError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise McrError(f"{path}: not JSON: {error}") from error
    if not isinstance(told, dict):
        raise McrError(f"{path}: not a JSON object")
    try:
        config = dataclasses.replace(from_json(told, ignore), folder=os.path.abspath(folder))
    except (ValueError, TypeError) as error:
        raise McrError(f"{path}: {shown(' '.join(str(error).split()), _LONGEST)}") from error
    text = told.get("text_config") if told["model_type"] == MULTIMODAL else None
    if keys := config_keys.passed_over({**(text or {}), **told}, ignore):
        _warn(f"{path}: passed over the unknown keys {keys}")
    return config


@functools.cache  # a command reads a file more than once
def _warn(message: str) -> None:
    logging.getLogger("mcr_jax").warning(message)


def from_json(told: Mapping[str, Any], ignore: Collection[str] = ()) -> DecoderConfig:
    """`DecoderConfig` of a parsed config.json. Raises ValueError naming the key that is wrong."""
    if told.get("model_type") == MULTIMODAL:
        config_keys.refuse(told, ignore)
        text = told.get("text_config")
        if not isinstance(text, Mapping):
            raise ValueError(f"model_type {MULTIMODAL!r} without a text_config")
        shared = ("tie_word_embeddings", "dtype", "torch_dtype")
        tokens = ("eos_token_id", "bos_token_id", "pad_token_id")  # the whole model's come first
        told = (
            {key: told[key] for key in shared if key in told}
            | dict(text)
            | {key: told[key] for key in tokens if key in told}
            | {"model_type": "gemma3_text"}
        )
    kind = told.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join((*FAMILIES, MULTIMODAL))
        raise ValueError(f"model_type {kind!r} is none of {known}")
    family = FAMILIES[kind]
    config_keys.refuse(told, ignore)
    values = {**family.defaults, **{k: v for k, v in told.items() if v is not None}}
    for key in _NULLS:
        if key in told and told[key] is None:
            values.pop(key, None)

    heads = number(values, "num_attention_heads")
    width = number(values, "hidden_size")
    layers = number(values, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers {layers} is more than {_MOST_LAYERS}")
    if "head_dim" not in values and width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {width}")
    head_dim = number(values, "head_dim", default=width // heads)
    activation = values.get(family.activation_key)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{family.activation_key} {activation!r} is none of {', '.join(_ACTIVATIONS)}"
        )
    window, local_layers = _windows(kind, values, layers)
    gemma = kind == "gemma3_text"
    rope, local_rope = rope_config.ropes(values, by_layer=gemma)
    scale = number(values, "query_pre_attn_scalar", float) ** -0.5 if gemma else None
    return DecoderConfig(
        vocab_size=number(values, "vocab_size"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=number(values, "num_key_value_heads", default=heads),
        head_dim=head_dim,
        mlp_width=number(values, "intermediate_size"),
        activation=_ACTIVATIONS[activation],
        rope=rope,
        local_rope=local_rope,
        window=window,
        local_layers=local_layers,
        norm_eps=number(values, "rms_norm_eps", float, 1e-6, least=0),
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_scale=scale,
        tied=flag(values, "tie_word_embeddings"),
        dtype=_dtype(values),
        source=json.dumps(told, indent=2, ensure_ascii=False),
        **family.fixed,
    )


def to_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a decoder, for both dialects' readers.

    What it was read from comes back as it was, but for the dtype; a decoder made here is written as
    the family that computes the same.

    Args:
      config: of the decoder, its embedding scale already where a family can express it.
      dtype: of the weights, such as "bfloat16".

    Raises:
      ValueError: no family of transformers computes what this decoder does.
    """
    plain = dataclasses.replace(config, attention="auto", remat="none", dtype=dtype)
    if config.source:
        told = json.loads(config.source)
        read = dataclasses.replace(from_json(told, told.keys()), dtype=dtype)
        if read != plain:
            raise ValueError(f"the decoder is no longer what its config.json says: {config}")
        written = [key for key in ("dtype", "torch_dtype") if key in told] or ["torch_dtype"]
        family = FAMILIES[told["model_type"]]
        return told | dict.fromkeys(written, dtype) | {"architectures": [family.architecture]}
    kind = _family_of(config)
    told = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        **rope_config.to_json(config.rope),
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "torch_dtype": dtype,
    }
    if from_json(told) != plain:
        raise ValueError(f"no family of transformers computes what this decoder does: {config}")
    return told


def _family_of(config: DecoderConfig) -> str:
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias else "llama"


def _windows(
    kind: str, values: Mapping[str, Any], layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    if kind == "llama":
        for key, without in (("use_sliding_window", False), ("layer_types", [GLOBAL] * layers)):
            if values.get(key, without) != without:
                raise ValueError(f"{key} = {values[key]!r}: a llama has no window")
        if "sliding_window" in values and not {"use_sliding_window", "layer_types"} & values.keys():
            raise ValueError(
                f"sliding_window = {values['sliding_window']!r}: a llama has no window"
            )
        return None, ()
    windowed = kind == "gemma3_text" or flag(values, "use_sliding_window")
    window = number(values, "sliding_window") if windowed and "sliding_window" in values else None
    if "layer_types" in values:
        types = values["layer_types"]
        if not isinstance(types, list) or len(types) != layers:
            raise ValueError(f"layer_types does not speak of {layers} layers")
        unknown = sorted({str(t) for t in types} - {GLOBAL, LOCAL})
        if unknown:
            raise ValueError(
                f"layer_types {', '.join(unknown)}: this decoder has {GLOBAL}, {LOCAL}"
            )
        local = tuple(t == LOCAL for t in types)
    elif kind == "gemma3_text":
        every = number(values, "sliding_window_pattern")
        local = tuple((layer + 1) % every != 0 for layer in range(layers))
    else:
        first = number(values, "max_window_layers", least=0)
        local = tuple(window is not None and layer >= first for layer in range(layers))
    if any(local) and window is None:
        raise ValueError(f"{LOCAL} without a sliding_window, or with use_sliding_window = False")
    return (window, local) if any(local) else (None, ())


def _dtype(values: Mapping[str, Any]) -> str:
    dtype = str(values.get("dtype", values.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    return dtype
