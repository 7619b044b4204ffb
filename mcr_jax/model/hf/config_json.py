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
from mcr_jax.model.families import FAMILIES, MULTIMODAL, Family, model_type
from mcr_jax.model.hf import config_keys, rope_config
from mcr_jax.model.hf.config_keys import flag, number, shown
from mcr_jax.model.hf.rope_config import GLOBAL, LOCAL
from mcr_jax.model.shape import DecoderConfig

FILE = "config.json"
DTYPES = ("float32", "bfloat16", "float16")
_MAX_LAYERS = 10_000
_MAX_ERROR_CHARS = 400  # an error may quote the file
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_NULL_IS_NONE = ("num_key_value_heads", "sliding_window")  # elsewhere null is the default


def read(folder: str | Path, ignore: Collection[str] = ()) -> DecoderConfig:
    """Reads the decoder's shape from FOLDER/config.json; unknown keys that pass are one warning.

    Args:
      folder: in Hugging Face's format.
      ignore: unknown keys to pass over in silence.

    Raises:
      McrError: the file is missing or broken, or asks for something this decoder does not compute.
    """
    path = Path(folder) / FILE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise McrError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise McrError(f"{path}: not JSON: {error}") from error
    if not isinstance(keys, dict):
        raise McrError(f"{path}: not a JSON object")
    try:
        config = dataclasses.replace(from_json(keys, ignore), folder=os.path.abspath(folder))
    except (ValueError, TypeError) as error:
        raise McrError(
            f"{path}: {shown(' '.join(str(error).split()), _MAX_ERROR_CHARS)}"
        ) from error
    text = keys["text_config"] if keys["model_type"] in MULTIMODAL else {}
    ignore = {*ignore, *FAMILIES[model_type(config)].harmless_keys}
    if unknown := config_keys.passed_over({**text, **keys}, ignore):
        _warn(f"{path}: passed over the unknown keys {unknown}")
    return config


@functools.cache  # a command reads a file more than once
def _warn(message: str) -> None:
    logging.getLogger("mcr_jax").warning(message)


def from_json(keys: Mapping[str, Any], ignore: Collection[str] = ()) -> DecoderConfig:
    """Makes the `DecoderConfig` of a parsed config.json. Raises ValueError naming the wrong key."""
    kind = keys.get("model_type")
    if not isinstance(kind, str) or kind not in {**FAMILIES, **MULTIMODAL}:
        known = ", ".join((*FAMILIES, *MULTIMODAL))
        raise ValueError(f"model_type {kind!r} is none of {known}")
    if kind in MULTIMODAL:
        config_keys.refuse(keys, ignore)
        text = keys.get("text_config")
        if not isinstance(text, Mapping):
            raise ValueError(f"model_type {kind!r} without a text_config")
        shared = ("tie_word_embeddings", "dtype", "torch_dtype")
        tokens = ("eos_token_id", "bos_token_id", "pad_token_id")  # the whole model's come first
        kind = MULTIMODAL[kind]
        keys = (
            {key: keys[key] for key in shared if key in keys}
            | dict(text)
            | {key: keys[key] for key in tokens if key in keys}
            | {"model_type": kind}
        )
    family = FAMILIES[kind]
    config_keys.refuse(keys, {*ignore, *family.harmless_keys})
    values = {**family.defaults, **{k: v for k, v in keys.items() if v is not None}}
    for key in _NULL_IS_NONE:
        if key in keys and keys[key] is None:
            values.pop(key, None)

    heads = number(values, "num_attention_heads")
    width = number(values, "hidden_size")
    layers = number(values, "num_hidden_layers")
    if layers > _MAX_LAYERS:
        raise ValueError(f"num_hidden_layers {layers} is more than {_MAX_LAYERS}")
    if "head_dim" not in values and width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {width}")
    head_dim = number(values, "head_dim", default=width // heads)
    activation = values.get(family.activation_key)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{family.activation_key} {activation!r} is none of {', '.join(_ACTIVATIONS)}"
        )
    window, local_layers = _windows(family, values, layers)
    rope, local_rope = rope_config.ropes(values, family)
    scalar = family.attention_scalar_key
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
        embedding_scale=math.sqrt(width) if family.scaled_embedding else 1.0,
        attention_scale=number(values, scalar, float) ** -0.5 if scalar else None,
        tied=flag(values, "tie_word_embeddings"),
        dtype=_dtype(values),
        source=json.dumps(keys, indent=2, ensure_ascii=False),
        **family.fixed,
    )


def to_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """Makes the config.json of a decoder, for readers of both dialects.

    Keys that were read from a file come back as they were, but for the dtype. A decoder made here
    is written as the family that computes the same.

    Args:
      config: of the decoder, its embedding scale already where a family can express it.
      dtype: of the weights, such as "bfloat16".

    Raises:
      ValueError: no family of transformers computes what this decoder does.
    """
    plain = dataclasses.replace(config, attention="auto", remat="none", dtype=dtype)
    kind = model_type(config)
    if config.source:
        keys = json.loads(config.source)
        read = dataclasses.replace(from_json(keys, keys.keys()), dtype=dtype)
        if read != plain:
            raise ValueError(f"the decoder is no longer what its config.json says: {config}")
        written = [key for key in ("dtype", "torch_dtype") if key in keys] or ["torch_dtype"]
        return (
            keys | dict.fromkeys(written, dtype) | {"architectures": [FAMILIES[kind].architecture]}
        )
    keys = {
        "architectures": [FAMILIES[kind].architecture if kind else None],
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
    if kind is None or from_json(keys) != plain:
        raise ValueError(f"no family of transformers computes what this decoder does: {config}")
    return keys


def _windows(
    family: Family, values: Mapping[str, Any], layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    """Reads the window and, for each layer, whether it has it; (None, ()) where none has."""
    on = flag(values, "use_sliding_window") if family.windows == "switched" else True
    on = on and family.windows != "none" and "sliding_window" in values
    window = number(values, "sliding_window") if on else None
    if family.windows in ("none", "all"):
        local = (on,) * layers
        # transformers reads neither key in such a family: each must say what it computes.
        implied = {"use_sliding_window": on, "layer_types": [LOCAL if on else GLOBAL] * layers}
        for key, value in implied.items():
            if values.get(key, value) != value:
                have = "all layers have the" if on else "no layer has a"
                raise ValueError(f"{key} = {values[key]!r}: in this family {have} window")
        if not on and "sliding_window" in values and not implied.keys() & values.keys():
            window = values["sliding_window"]
            raise ValueError(f"sliding_window = {window!r}: no layer of this family has a window")
    elif "layer_types" in values:
        types = values["layer_types"]
        if not isinstance(types, list) or len(types) != layers:
            raise ValueError(f"layer_types does not list {layers} layers")
        unknown = sorted({str(t) for t in types} - {GLOBAL, LOCAL})
        if unknown:
            raise ValueError(
                f"layer_types {', '.join(unknown)}: this decoder has {GLOBAL}, {LOCAL}"
            )
        local = tuple(t == LOCAL for t in types)
    elif family.windows == "pattern":
        every = number(values, "sliding_window_pattern")
        local = tuple((layer + 1) % every != 0 for layer in range(layers))
    else:
        first = number(values, "max_window_layers", least=0)
        local = tuple(on and layer >= first for layer in range(layers))
    if any(local) and not on:
        raise ValueError(f"{LOCAL} without a sliding_window, or with use_sliding_window = False")
    return (window, local) if any(local) else (None, ())


def _dtype(values: Mapping[str, Any]) -> str:
    dtype = str(values.get("dtype", values.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    return dtype
