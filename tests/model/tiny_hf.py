"""Tiny random models in Hugging Face's format: configs as published weights have them, and weights.

The weights of a tensor follow from its name and shape, so transformers in one environment and this
project in another hold the same model without passing it on. Nothing here needs torch.
"""

import json
import pathlib
import zlib

import numpy as np
import safetensors.numpy

GOLDEN = pathlib.Path(__file__).with_name("golden")
LENGTH, ROWS, VOCAB = 600, 2, 96
PLACES = (*range(0, LENGTH, 37), LENGTH - 2, LENGTH - 1)  # whose logits the golden files keep

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
_ENDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    **_ENDS,
    "original_max_position_embeddings": 256,  # well below the length of the input
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 128}  # LENGTH is past the longer one
_LLAMA = {**_SIZES, "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
_QWEN2 = {**_SIZES, "model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1e6}
_QWEN3 = {**_SIZES, "model_type": "qwen3", "hidden_act": "silu", "head_dim": 16, "rope_theta": 1e6}
_GEMMA3 = {
    **_SIZES,
    "model_type": "gemma3_text",
    "num_hidden_layers": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 64,
    "sliding_window_pattern": 6,
}
_MISTRAL = {**_SIZES, "model_type": "mistral", "hidden_act": "silu", "rope_theta": 1e6}
_PHI3 = {**_SIZES, "model_type": "phi3", "hidden_act": "silu", "rope_theta": 1e4}
_PHI3 |= {"original_max_position_embeddings": 4096, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_PHI3 |= {"pad_token_id": 0, "tie_word_embeddings": False}
_WINDOWED = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}

# In transformers 4's dialect, the one that published weights are in.
VARIANTS = {
    "llama3": {
        **_LLAMA,
        "rope_theta": 5e5,
        "rope_scaling": _LLAMA3,
        "tie_word_embeddings": False,
        "eos_token_id": [1, 8, 9],
    },
    "llama3_tied": {
        **_LLAMA,
        "rope_theta": 5e5,
        "rope_scaling": {**_LLAMA3, "factor": 32.0},
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "llama_linear": {
        **_LLAMA,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "tie_word_embeddings": False,
    },
    "qwen2": {**_QWEN2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "qwen2_tied": {**_QWEN2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen2_windowed": {**_QWEN2, **_WINDOWED, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    "qwen3": {**_QWEN3, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "qwen3_tied": {**_QWEN3, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen2_yarn": {
        **_QWEN2,
        "num_key_value_heads": None,
        "max_position_embeddings": 512,
        "rope_scaling": {**_YARN, "type": "yarn"},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "qwen3_yarn": {
        **_QWEN3,
        "max_position_embeddings": 512,
        "rope_scaling": {
            **_YARN,
            "rope_type": "yarn",
            "attention_factor": 1.3,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "gemma3": {**_GEMMA3, "rms_norm_eps": 1e-6},
    "gemma3_scaled": {**_GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3_untied": {**_GEMMA3, "tie_word_embeddings": False, "sliding_window_pattern": 3},
    "mistral": {
        **_MISTRAL,
        "sliding_window": 100,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "mistral_unwindowed": {
        **_MISTRAL,
        "head_dim": 16,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "phi3": {**_PHI3, "sliding_window": 100, "rms_norm_eps": 1e-5},
    "phi3_unwindowed": {**_PHI3, "num_key_value_heads": None, "sliding_window": None},
}

# Ropes alone, by the text of their keys: what transformers makes of each stands in a golden file.
_LONG = {"factor": 4.0, "original_max_position_embeddings": 32768}
ROPES = (
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    {**_LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **_ENDS},
    {"rope_type": "yarn", "rope_theta": 1e6, **_LONG},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.5},
    {"rope_type": "yarn", "rope_theta": 1e6, **_YARN, "factor": None},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0.5},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "attention_factor": 0.75},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "mscale": 1.0, "mscale_all_dim": 0.8},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "mscale": 0.7},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "mscale": 0.7, "mscale_all_dim": 0.0},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "beta_fast": 16, "beta_slow": 4},
    {"rope_type": "yarn", "rope_theta": 1e4, **_LONG, "beta_fast": None, "truncate": False},
    {"rope_type": "yarn", "rope_theta": 1e4, **_YARN, "beta_fast": 1, "beta_slow": 1},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 4},
)
HEAD_DIM, MAX_LENGTH = 64, 4096  # of `ROPES`


def tokens() -> np.ndarray:
    """Draws int64 [ROWS, LENGTH]."""
    return np.random.default_rng(7).integers(0, VOCAB, (ROWS, LENGTH))


def weights(variant: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws float32 values for every tensor of a variant, such that logits are of the order of ten.

    Args:
      variant: of `VARIANTS`.
      shapes: by the names that transformers gives the tensors.
    """
    gemma = VARIANTS[variant]["model_type"] == "gemma3_text"  # whose norms are stored around zero
    made = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("norm.weight"):
            x = 0.1 * x + (0 if gemma else 1)
        elif name.endswith("bias"):
            x = 0.3 * x
        else:
            x = x * (0.5 if "embed_tokens" in name else shape[-1] ** -0.5)
        made[name] = x.astype(np.float32)
    return made


def write(folder: pathlib.Path, config: dict, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """Saves a model folder of one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
