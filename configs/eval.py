"""Evaluates a model in a Hugging Face folder on MedCaseReasoning; trains nothing.

    hf download Qwen/Qwen2.5-7B-Instruct --local-dir=DIR
    mcr build
    mcr eval --config=eval --config.model.folder=DIR --workdir=runs/mine

DIR holds a Qwen 2, 2.5 or 3, a Llama 3 or a Gemma 3 of any size. Samples ten answers of up to 4,096
tokens for each of the 897 test cases. The judge is Gemini and needs GEMINI_API_KEY.

    --config.sample.models=q7=hf:DIR,o3=openai:o3,g=gemini:gemini-3.5-flash    several models
    --config.data.eval_cases=20     the first 20 cases only
    --config.sample.kv_dtype=int8   half the memory for the KV cache
    --config.sample.dtype=float32   on a CPU, which is slow in bfloat16
"""

from ml_collections import ConfigDict

from mcr_jax import config
from mcr_jax.configs._benchmark import measure


def get_config() -> ConfigDict:
    """Returns the config."""
    c = config.default()
    c.name = "MedCaseReasoning"
    c.model.shape = "any"
    c.model.dtype = "bfloat16"

    c.sample.models = ("base",)
    measure(c, max_tokens=4096)
    return c
