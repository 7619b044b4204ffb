"""Shapes of published models, for planning while their folders are elsewhere.

Each holds the keys of its config.json that set the architecture, read by the same code as a
folder's. With a folder, the folder's own file counts; a config that names a shape takes every size
of its family.
"""

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from mcr_jax.errors import UsageError
from mcr_jax.model.hf import config_json
from mcr_jax.model.shape import DecoderConfig

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_SIZES += ("num_key_value_heads", "vocab_size")  # of the vocabulary: rows of the tables


def _config(model_type: str, *sizes: int, eps: float = 1e-6, **keys: Any) -> dict[str, Any]:
    """Makes a config.json of sizes in the order of `_SIZES`."""
    shared = {"model_type": model_type, "rms_norm_eps": eps, "torch_dtype": "bfloat16"}
    return shared | dict(zip(_SIZES, sizes, strict=True)) | keys


def _llama3(*sizes: int, factor: float, **keys: Any) -> dict[str, Any]:
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return _config("llama", *sizes, eps=1e-5, rope_theta=500_000.0, rope_scaling=rope, **keys)


_qwen2_5 = functools.partial(_config, "qwen2", rope_theta=1_000_000.0)
_mistral = functools.partial(_config, "mistral", eps=1e-5)
_phi3 = functools.partial(_config, "phi3", eps=1e-5)
_gemma3 = functools.partial(_config, "gemma3_text")
_TIED = {"tie_word_embeddings": True}
_LARGE = {"sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_GEMMA_27B = {**_LARGE, "head_dim": 128, "query_pre_attn_scalar": 168}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_5_0_5b": _qwen2_5(24, 896, 4864, 14, 2, 151_936, **_TIED),
    "qwen2_5_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, 151_936, **_TIED),
    "qwen2_5_3b": _qwen2_5(36, 2048, 11_008, 16, 2, 151_936, **_TIED),
    "qwen2_5_7b": _qwen2_5(28, 3584, 18_944, 28, 4, 152_064),
    "qwen2_5_14b": _qwen2_5(48, 5120, 13_824, 40, 8, 152_064, eps=1e-5),
    "qwen2_5_32b": _qwen2_5(64, 5120, 27_648, 40, 8, 152_064, eps=1e-5),
    "qwen3_8b": _config("qwen3", 36, 4096, 12_288, 32, 8, 151_936, rope_theta=1_000_000.0),
    "llama3_2_1b": _llama3(16, 2048, 8192, 32, 8, 128_256, factor=32.0, **_TIED),
    "llama3_2_3b": _llama3(28, 3072, 8192, 24, 8, 128_256, factor=32.0, **_TIED),
    "llama3_1_8b": _llama3(32, 4096, 14_336, 32, 8, 128_256, factor=8.0),
    "llama3_1_70b": _llama3(80, 8192, 28_672, 64, 8, 128_256, factor=8.0),
    "mistral_7b_v0_1": _mistral(32, 4096, 14_336, 32, 8, 32_000, sliding_window=4096),
    "mistral_7b_v0_3": _mistral(
        *(32, 4096, 14_336, 32, 8, 32_768), sliding_window=None, rope_theta=1_000_000.0
    ),
    "phi3_mini_4k": _phi3(32, 3072, 8192, 32, 32, 32_064, sliding_window=2047),
    "phi4": _phi3(40, 5120, 17_920, 40, 10, 100_352, rope_theta=250_000.0),
    "gemma3_270m": _gemma3(18, 640, 2048, 4, 1, 262_144, sliding_window=512),
    "gemma3_1b": _gemma3(26, 1152, 6912, 4, 1, 262_144, sliding_window=512),
    # From 4B on the text half; its table has 64 rows more, for images.
    "gemma3_4b": _gemma3(34, 2560, 10_240, 8, 4, 262_208, **_LARGE),
    "gemma3_12b": _gemma3(48, 3840, 15_360, 16, 8, 262_208, **_LARGE),
    "gemma3_27b": _gemma3(62, 5376, 21_504, 32, 16, 262_208, **_GEMMA_27B),
    "medgemma_4b": _gemma3(34, 2560, 10_240, 8, 4, 262_208, **_LARGE),
    # The text-only variant.
    "medgemma_27b": _gemma3(62, 5376, 21_504, 32, 16, 262_144, **_GEMMA_27B),
}
ANY = "any"  # config.model.shape of a config that takes every folder


def shape(name: str) -> DecoderConfig:
    """Returns the decoder of a published model, such as "qwen2_5_7b"; UsageError for others."""
    if name == ANY:
        raise UsageError(
            "config.model.shape=any leaves the shape to config.model.folder: name the folder, or "
            f"one of {', '.join(CONFIGS)}"
        )
    if name not in CONFIGS:
        close = difflib.get_close_matches(name, CONFIGS, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(CONFIGS)}"
        raise UsageError(f"config.model.shape={name!r} is no published model known here; {hint}")
    return config_json.from_json(CONFIGS[name])
