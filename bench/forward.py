"""Forward tokens per second of one decoder, against transformers with the same weights.

    python -m bench.forward                      # the CPU reference shape, float32
    python -m bench.forward --shape=7b --rows=1  # on an accelerator: bfloat16, 4,096 tokens

Both compute the logits of every token. Runs alternate, so that other load slows down both; the
median of each counts. Before timing, the logits are compared. `of_matmul_peak` is the share of the
device's measured matmul rate, with causal attention counted as half of full attention.
"""

import argparse
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from mcr_jax.model import hf

from . import alternate, line, timed

SHAPES = {
    "reference": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=0, help="0: 512, or 4096 of the 7b shape")
    parser.add_argument("--runs", type=int, default=15)
    flags = parser.parse_args()
    large = flags.shape == "7b"
    length, dtype = flags.length or (4096 if large else 512), "bfloat16" if large else "float32"

    config = transformers.Qwen2Config(**SHAPES[flags.shape], max_position_embeddings=8192)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        peer = transformers.Qwen2ForCausalLM(config).to(getattr(torch, dtype)).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        graph, params = nnx.split(hf.load(folder))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (flags.rows, length))
    ours_in, peer_in = jnp.asarray(tokens), torch.from_numpy(tokens).to(device)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))

    def ours() -> jax.Array:
        return jax.block_until_ready(forward(params, ours_in))

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            logits = peer(peer_in, use_cache=False).logits
        if device == "cuda":
            torch.cuda.synchronize()
        return logits

    difference = np.abs(np.asarray(ours()) - theirs().float().cpu().numpy()).max()
    mine, other = alternate(ours, theirs, flags.runs)
    count = tokens.size
    peak = _matmul_flops_per_second(dtype)
    line(
        bench="forward",
        ours=count / mine,
        peer=count / other,
        unit="tokens/s",
        shape=f"{flags.shape} {flags.rows}x{length} {dtype}",
        device=jax.devices()[0].device_kind,
        logits_max_difference=float(difference),
        of_matmul_peak=round(_flops(config, *tokens.shape) / mine / peak, 3),
    )


def _flops(config: transformers.Qwen2Config, rows: int, length: int) -> float:
    """Counts a forward pass: 2 per weight and token, 4 per query, visible key and head size."""
    c, head_dim = config, config.hidden_size // config.num_attention_heads
    attended = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * head_dim * c.hidden_size
    layer = attended + 3 * c.hidden_size * c.intermediate_size
    weights = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
    attention = 4 * c.num_hidden_layers * c.hidden_size * length / 2
    return rows * length * (2 * weights + attention)


def _matmul_flops_per_second(dtype: str) -> float:
    """Measures the best of ten square matmuls of a size that fills the device."""
    size = 1536 if jax.default_backend() == "cpu" else 8192
    product, x = jax.jit(lambda x: x @ x), jnp.ones((size, size), dtype)
    return 2 * size**3 / min(timed(lambda: product(x).block_until_ready(), 10))


if __name__ == "__main__":
    main()
