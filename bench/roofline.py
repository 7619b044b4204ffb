"""Sampled tokens per second of a 7B or 8B decoder on one GPU, as a share of the memory roofline.

    python -m bench.roofline                      # Qwen2.5-7B and Llama-3.1-8B, bfloat16
    python -m bench.roofline --shapes=tiny        # a quick check that it works, on any CPU

Random weights; 10 samples of each prompt of about 1,000 tokens, of random lengths with a mean of
500 and a long tail. Ours includes prefill. The bound is that of decode steps with every slot busy:

    t = max(2P / BW, 2PB / F) + B c κ / BW        tokens/s = B / t

P matmul parameters, B slots, κ bytes of the KV cache per token, c tokens of the KV cache that a
sample reads: its own so far, and its share of a prompt that half of its samples still read. BW and
F are measured in the same process. transformers' `generate` takes the same prompts in batches of
several sizes, after a warm-up call. Each side runs in a separate process. Needs only jax, flax,
optax, numpy, torch and transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from mcr_jax.model.hf import published
from mcr_jax.model.shape import DecoderConfig

from . import matmul_size, timed

TINY = DecoderConfig(
    vocab_size=512, layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=192
)
SAMPLES = 10
EOS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="qwen2_5_7b,llama3_1_8b")
    parser.add_argument("--side", choices=("both", "ours", "peer"), default="both")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--slots", default="128", help="slots of each of our runs, as in 128,256")
    parser.add_argument("--peer-prompts", default="4,12", help="batch sizes to choose from")
    flags = parser.parse_args()
    if flags.side == "both":
        for side in ("ours", "peer"):
            call = [sys.executable, "-m", __spec__.name, *sys.argv[1:], f"--side={side}"]
            subprocess.run(call, check=True)
        return
    for name in flags.shapes.split(","):
        config = TINY if name == "tiny" else published.shape(name)
        scale = 16 if name == "tiny" else 1
        tokens, lengths = _work(config.vocab_size, flags.prompts, scale)
        run = {"bench": "roofline", "side": flags.side, "shape": name}
        for figures in (_ours if flags.side == "ours" else _peer)(config, tokens, lengths, flags):
            print(json.dumps(run | figures), flush=True)


def _work(vocab: int, prompts: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws prompts, int [prompts, 1000], and the lengths of their samples, int [prompts, 10]."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, vocab, (prompts, 1000 // scale))
    lengths = np.exp(rng.normal(6, 0.7, (prompts, SAMPLES)))
    return tokens, (np.clip(lengths, 16, 2048) // scale).astype(int)


def _ours(config: DecoderConfig, tokens, lengths, flags):
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    import jax
    from flax import nnx

    from mcr_jax.generate.engine.engine import Engine
    from mcr_jax.generate.engine.scheduling import Prompt
    from mcr_jax.generate.engine.state import Shape
    from mcr_jax.generate.engine.weights import take
    from mcr_jax.model.abstract import abstract_decoder, initial_params
    from mcr_jax.model.sharding import one_device, shardings

    mesh = one_device()
    graph, shapes = abstract_decoder(config)
    bandwidth, flops = _bytes_per_second(), _flops_per_second()
    drawn = jax.jit(lambda: initial_params(config, 0), out_shardings=shardings(mesh, shapes))()
    weights = take(nnx.merge(graph, drawn))
    del drawn
    prompts = [
        Prompt(
            tokens=row.astype(np.int32),
            case=number,
            samples=tuple(range(SAMPLES)),
            limits=tuple(map(int, limits)),
        )
        for number, (row, limits) in enumerate(zip(tokens, lengths, strict=True))
    ]
    for slots in map(int, flags.slots.split(",")):
        shape = Shape(
            slots=slots,
            share=SAMPLES,
            prompt_tokens=-(-tokens.shape[1] // 512) * 512,
            max_tokens=int(lengths.max()),
        )
        engine = Engine(config, weights, shape, (), 0, mesh)
        start = time.perf_counter()
        for _ in engine.run(prompts[: slots // SAMPLES + 1]):
            pass
        warm_up = time.perf_counter() - start
        start = time.perf_counter()
        count = sum(len(sample.tokens) for sample in engine.run(prompts))
        seconds = time.perf_counter() - start
        assert count == lengths.sum(), (count, lengths.sum())
        bound = _bound(config, slots, tokens.shape[1], lengths, bandwidth, flops)
        stats = jax.devices()[0].memory_stats() or {}
        yield {
            "tokens_per_second": round(count / seconds, 1),
            "bound": round(bound, 1),
            "of_bound": round(count / seconds / bound, 4),
            "slots": slots,
            "slots_busy": round(count / engine.pulse.steps / slots, 4),
            "warm_up_seconds": round(warm_up, 1),
            "bytes_per_second": round(bandwidth),
            "matmul_flops_per_second": round(flops),
            "peak_bytes": stats.get("peak_bytes_in_use"),
            "device": jax.devices()[0].device_kind,
        }
        del engine


def _bound(c: DecoderConfig, slots, prompt, lengths, bandwidth, flops) -> float:
    size = 2 if c.dtype == "bfloat16" else 4
    attended = (2 * c.heads + 2 * c.kv_heads) * c.head_dim * c.width
    parameters = c.layers * (attended + 3 * c.width * c.mlp_width) + c.vocab_size * c.width
    token_bytes = 2 * c.layers * c.kv_heads * c.head_dim * size
    own = (lengths.astype(float) ** 2).sum() / lengths.sum() / 2  # mean number of earlier tokens
    read = own + prompt / (SAMPLES / 2)
    seconds = max(size * parameters / bandwidth, 2 * parameters * slots / flops)
    return slots / (seconds + slots * read * token_bytes / bandwidth)


def _bytes_per_second() -> float:
    """Measures reading and writing an array that is larger than all caches."""
    import jax
    import jax.numpy as jnp

    count = 1 << (24 if jax.default_backend() == "cpu" else 30)
    add, x = jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(count, jnp.float32)

    def run() -> None:
        nonlocal x
        x = add(x).block_until_ready()

    return 2 * 4 * count / min(timed(run, 10))


def _flops_per_second() -> float:
    import jax
    import jax.numpy as jnp

    size = matmul_size(jax.default_backend())
    product, x = jax.jit(lambda x: x @ x), jnp.ones((size, size), jnp.bfloat16)
    return 2 * size**3 / min(timed(lambda: product(x).block_until_ready(), 10))


def _peer(config: DecoderConfig, tokens, lengths, flags):
    import torch
    import transformers

    from .decode import Transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    llama = not config.qkv_bias
    kind = transformers.LlamaConfig if llama else transformers.Qwen2Config
    shape = kind(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        tie_word_embeddings=config.tied,
        max_position_embeddings=32_768,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    torch.manual_seed(0)
    with torch.device(device):
        dtype = getattr(torch, config.dtype)
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = EOS
    for size in map(int, flags.peer_prompts.split(",")):
        size = min(size, len(tokens))
        Transformers(model, tokens[:1], np.full((1, SAMPLES), 8), 1)()  # warms up
        call = Transformers(model, tokens[:size], lengths[:size], size)
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        yield {
            "tokens_per_second": round(lengths[:size].sum() / seconds, 1),
            "prompts_of_batch": size,
            "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }


if __name__ == "__main__":
    main()
