"""Shapes of published models, for planning while their folders are elsewhere.

Each is what its config.json says of the architecture, read by the same code as a folder's. Where a
folder is at hand, its own file counts, and a config that names a shape takes every size of its
family.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from mcr_jax.errors import UsageError
from mcr_jax.model.hf import config_json
from mcr_jax.model.shape import DecoderConfig


def _sizes(layers: int, width: int, mlp_width: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _qwen2_5(*sizes: int, vocab: int = 151_936, eps: float = 1e-6, tied: bool = True) -> dict:
    return {
        "model_type": "qwen2",
        **_sizes(*sizes),
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def _llama3(*sizes: int, head_dim: int, factor: float, tied: bool) -> dict:
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {
        "model_type": "llama",
        **_sizes(*sizes),
        "head_dim": head_dim,
        "vocab_size": 128_256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": rope,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def _mistral(*, vocab: int, window: int | None, theta: float) -> dict:
    return {
        "model_type": "mistral",
        **_sizes(32, 4096, 14_336, 32, 8),
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "sliding_window": window,
        "torch_dtype": "bfloat16",
    }


def _phi3(*sizes: int, vocab: int, window: int | None, theta: float) -> dict:
    return {
        "model_type": "phi3",
        **_sizes(*sizes),
        "vocab_size": vocab,
        "rope_theta": theta,
        "sliding_window": window,
        "torch_dtype": "bfloat16",
    }


def _gemma3(*sizes: int, head_dim: int, scalar: int, window: int, vocab: int, **more: Any) -> dict:
    return {
        "model_type": "gemma3_text",
        **_sizes(*sizes),
        "head_dim": head_dim,
        "query_pre_attn_scalar": scalar,
        "sliding_window": window,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
        **more,
    }


# Gemma 3 from 4B on, and its heads.
_LARGE = {"window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_OF_256, _OF_128 = {"head_dim": 256, "scalar": 256}, {"head_dim": 128, "scalar": 168}

# Layers, width, MLP width, query heads, key heads; the vocabulary is what the tables have rows for.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_5_0_5b": _qwen2_5(24, 896, 4864, 14, 2),
    "qwen2_5_1_5b": _qwen2_5(28, 1536, 8960, 12, 2),
    "qwen2_5_3b": _qwen2_5(36, 2048, 11_008, 16, 2),
    "qwen2_5_7b": _qwen2_5(28, 3584, 18_944, 28, 4, vocab=152_064, tied=False),
    "qwen2_5_14b": _qwen2_5(48, 5120, 13_824, 40, 8, vocab=152_064, eps=1e-5, tied=False),
    "qwen2_5_32b": _qwen2_5(64, 5120, 27_648, 40, 8, vocab=152_064, eps=1e-5, tied=False),
    "qwen3_8b": {
        "model_type": "qwen3",
        **_sizes(36, 4096, 12_288, 32, 8),
        "head_dim": 128,
        "vocab_size": 151_936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "llama3_2_1b": _llama3(16, 2048, 8192, 32, 8, head_dim=64, factor=32.0, tied=True),
    "llama3_2_3b": _llama3(28, 3072, 8192, 24, 8, head_dim=128, factor=32.0, tied=True),
    "llama3_1_8b": _llama3(32, 4096, 14_336, 32, 8, head_dim=128, factor=8.0, tied=False),
    "llama3_1_70b": _llama3(80, 8192, 28_672, 64, 8, head_dim=128, factor=8.0, tied=False),
    "mistral_7b_v0_1": _mistral(vocab=32_000, window=4096, theta=10_000.0),
    "mistral_7b_v0_3": _mistral(vocab=32_768, window=None, theta=1_000_000.0),
    "phi3_mini_4k": _phi3(32, 3072, 8192, 32, 32, vocab=32_064, window=2047, theta=10_000.0),
    "phi4": _phi3(40, 5120, 17_920, 40, 10, vocab=100_352, window=None, theta=250_000.0),
    "gemma3_270m": _gemma3(
        *(18, 640, 2048, 4, 1), head_dim=256, scalar=256, window=512, vocab=262_144
    ),
    "gemma3_1b": _gemma3(
        *(26, 1152, 6912, 4, 1), head_dim=256, scalar=256, window=512, vocab=262_144
    ),
    # From 4B on the text half; its table has 64 rows more, for images.
    "gemma3_4b": _gemma3(*(34, 2560, 10_240, 8, 4), **_LARGE, **_OF_256, vocab=262_208),
    "gemma3_12b": _gemma3(*(48, 3840, 15_360, 16, 8), **_LARGE, **_OF_256, vocab=262_208),
    "gemma3_27b": _gemma3(*(62, 5376, 21_504, 32, 16), **_LARGE, **_OF_128, vocab=262_208),
    "medgemma_4b": _gemma3(*(34, 2560, 10_240, 8, 4), **_LARGE, **_OF_256, vocab=262_208),
    # The text-only variant.
    "medgemma_27b": _gemma3(*(62, 5376, 21_504, 32, 16), **_LARGE, **_OF_128, vocab=262_144),
}
ANY = "any"  # config.model.shape of a config that takes every folder


def shape(name: str) -> DecoderConfig:
    """The decoder of a published model, such as "qwen2_5_7b". Raises UsageError for others."""
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
