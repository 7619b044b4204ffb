"""config.json of a Hugging Face folder to `DecoderConfig` and back.

Two dialects are read: transformers 4, in which the published weights are (`rope_theta`,
`rope_scaling`, `rope_local_base_freq`, `sliding_window_pattern`), and transformers 5
(`rope_parameters`, for Gemma 3 one per layer type, and `layer_types`). `hf_keys` refuses the keys
that may change the numbers and are not read here.
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
from mcr_jax.model import hf_keys
from mcr_jax.model.config import DecoderConfig, Rope

FILE = "config.json"
GLOBAL, LOCAL = "full_attention", "sliding_attention"
DTYPES = ("float32", "bfloat16", "float16")
_MOST_LAYERS = 10_000
_LARGEST = 1e12  # of any number in a config; bounds what a broken file can make of this process
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


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
        raise McrError(f"{path}: {' '.join(str(error).split())}") from error
    text = told.get("text_config") if told["model_type"] == MULTIMODAL else None
    if keys := hf_keys.passed_over({**(text or {}), **told}, ignore):
        _warn(f"{path}: passed over the unknown keys {keys}")
    return config


@functools.cache  # a command reads a file more than once
def _warn(message: str) -> None:
    logging.getLogger("mcr_jax").warning(message)


def from_json(told: Mapping[str, Any], ignore: Collection[str] = ()) -> DecoderConfig:
    """`DecoderConfig` of a parsed config.json. Raises ValueError naming the key that is wrong."""
    if told.get("model_type") == MULTIMODAL:
        hf_keys.refuse(told, ignore)
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
    hf_keys.refuse(told, ignore)
    values = {**family.defaults, **{k: v for k, v in told.items() if v is not None}}

    heads = _number(values, "num_attention_heads", int)
    width = _number(values, "hidden_size", int)
    layers = _number(values, "num_hidden_layers", int)
    if layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers {layers} is more than {_MOST_LAYERS}")
    if "head_dim" not in values and width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {width}")
    head_dim = _number(values, "head_dim", int, width // heads)
    activation = values.get(family.activation_key)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{family.activation_key} {activation!r} is none of {', '.join(_ACTIVATIONS)}"
        )
    window, local_layers = _windows(kind, values, layers)
    rope, local_rope = _ropes(kind, values)
    gemma = kind == "gemma3_text"
    scale = _number(values, "query_pre_attn_scalar", float) ** -0.5 if gemma else None
    return DecoderConfig(
        vocab_size=_number(values, "vocab_size", int),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=_number(values, "num_key_value_heads", int, heads),
        head_dim=head_dim,
        mlp_width=_number(values, "intermediate_size", int),
        activation=_ACTIVATIONS[activation],
        rope=rope,
        local_rope=local_rope,
        window=window,
        local_layers=local_layers,
        norm_eps=_number(values, "rms_norm_eps", float, 1e-6, least=0),
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_scale=scale,
        tied=_flag(values, "tie_word_embeddings"),
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
        "rope_theta": config.rope.theta,
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
    windowed = kind == "gemma3_text" or _flag(values, "use_sliding_window")
    window = _number(values, "sliding_window", int) if windowed else None
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
        if any(local) and window is None:
            raise ValueError(f"layer_types has {LOCAL} but use_sliding_window is false")
    elif kind == "gemma3_text":
        every = _number(values, "sliding_window_pattern", int)
        local = tuple((layer + 1) % every != 0 for layer in range(layers))
    else:
        first = _number(values, "max_window_layers", int, least=0)
        local = tuple(window is not None and layer >= first for layer in range(layers))
    return (window, local) if any(local) else (None, ())


def _ropes(kind: str, values: Mapping[str, Any]) -> tuple[Rope, Rope | None]:
    """The ropes of the global and of the local layers."""
    gemma = kind == "gemma3_text"
    theta = _number(values, "rope_theta", float, 10_000.0)
    local_theta = _number(values, "rope_local_base_freq", float, 10_000.0)
    if "rope_parameters" not in values:
        scaling = values.get("rope_scaling", {})
        return _rope(scaling, theta, "rope_scaling"), Rope(theta=local_theta) if gemma else None
    if "rope_scaling" in values:
        raise ValueError("rope_parameters and rope_scaling are both there: one dialect at a time")
    told = values["rope_parameters"]
    if not gemma:
        return _rope(told, theta, "rope_parameters"), None
    if not isinstance(told, Mapping) or not told.keys() <= {GLOBAL, LOCAL}:
        raise ValueError(f"rope_parameters of a {kind} are by layer type: {GLOBAL}, {LOCAL}")
    return (
        _rope(told.get(GLOBAL) or {}, theta, f"rope_parameters.{GLOBAL}"),
        _rope(told.get(LOCAL) or {}, local_theta, f"rope_parameters.{LOCAL}"),
    )


_ROPE_KEYS = {
    "none": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
}


def _rope(told: Any, theta: float, where: str) -> Rope:
    if not isinstance(told, Mapping):
        raise ValueError(f"{where} is not an object")
    told = {key: value for key, value in told.items() if value is not None}
    kinds = {str(told.pop(key)) for key in ("rope_type", "type") if key in told} or {"default"}
    theta = _number(told, "rope_theta", float, theta)
    told.pop("rope_theta", None)
    if told.get("partial_rotary_factor") == 1:
        told.pop("partial_rotary_factor")
    kind = "none" if kinds == {"default"} else "/".join(sorted(kinds))
    if kind == "linear":
        told.pop("original_max_position_embeddings", None)  # has no part in it
    if kind not in _ROPE_KEYS:
        raise ValueError(f"{where}: rope type {kind!r} is none of default, linear, llama3")
    if told.keys() != _ROPE_KEYS[kind]:
        odd = ", ".join(sorted(told.keys() ^ _ROPE_KEYS[kind]))
        raise ValueError(f"{where}: a rope of type {kind!r} is missing, or has too many: {odd}")
    names = {"original_max_position_embeddings": "original_length"}
    numbers = {
        names.get(key, key): _number(told, key, int if key in names else float) for key in told
    }
    return Rope(theta=theta, scaling=kind, **numbers)


def _dtype(values: Mapping[str, Any]) -> str:
    dtype = str(values.get("dtype", values.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    return dtype


def _number(
    values: Mapping[str, Any], key: str, kind: type, default: Any = None, least: float | None = None
) -> Any:
    """A whole number, at least 1, or any positive one, unless `least` says otherwise."""
    value = values.get(key, default)
    if value is None:
        raise ValueError(f"{key} is missing")
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not abs(value) < _LARGEST or value != kind(value):
        raise ValueError(f"{key} is not {'a whole' if kind is int else 'a'} number: {value!r}")
    if value < least if least is not None else value <= 0:
        raise ValueError(f"{key} is too small: {value!r}")
    return kind(value)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false: {value!r}")
    return value
