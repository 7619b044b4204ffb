"""Largest difference between our logits and those of transformers, for downloaded weights.

    python -m bench.parity path/to/Qwen2.5-7B-Instruct
    python -m bench.parity path/to/medgemma-4b-it --dtype=bfloat16 --length=2000

The input is the file `--text`, or random ids. Take at least 500 tokens: a wrong scaling of rotary
positions shows only in long inputs. Float32 agrees to about 1e-4 of the largest logit; in bfloat16
see `same_choice`, the share of places with the same most likely token. One model is in memory at a
time.
"""

import argparse
import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mcr_jax.model import hf
from mcr_jax.model.sharding import make_mesh
from mcr_jax.text.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--length", type=int, default=600)
    parser.add_argument("--text", help="file with the input, for the tokenizer of the folder")
    flags = parser.parse_args()

    model = hf.load(flags.folder, mesh=make_mesh(1, -1, 1), dtype=flags.dtype)
    if flags.text:
        ids = Tokenizer.load(flags.folder).encode(Path(flags.text).read_text(encoding="utf-8"))
        tokens = np.asarray(ids[: flags.length])[None]
    else:
        vocab = model.config.vocab_size
        tokens = np.random.default_rng(0).integers(0, vocab, (1, flags.length))
    graph, params = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
        ours = np.asarray(forward(params, jnp.asarray(tokens)))
    del model, params
    gc.collect()
    theirs = _transformers(flags.folder, flags.dtype, tokens)[..., : ours.shape[-1]]
    figures = {
        "bench": "parity",
        "folder": flags.folder,
        "dtype": flags.dtype,
        "tokens": tokens.size,
        "largest_difference": float(np.abs(ours - theirs).max()),
        "largest_logit": float(np.abs(theirs).max()),
        "same_choice": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(figures), flush=True)


def _transformers(folder: str, dtype: str, tokens: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        logits = model.to(device).eval()(torch.from_numpy(tokens).to(device), use_cache=False)
    return logits.logits.float().cpu().numpy()


if __name__ == "__main__":
    main()
