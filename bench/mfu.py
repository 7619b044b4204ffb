"""Model FLOPs utilization of whole training steps on one GPU, against transformers' best attention.

    python -m bench.mfu                  # Qwen2.5-7B's shape, rows of 4,096, bfloat16
    python -m bench.mfu --shape=tiny     # a quick check that it works, on any CPU

Full fine-tuning of random weights on packed rows of segments as long as real cases, with loss on
the answers. Each side runs in a separate process and has the whole memory. transformers takes the
same segments in one row, separated by their positions, with gradient checkpointing, fused AdamW in
bfloat16 and the fastest of its attentions.

`mfu` is the count of `mcr_jax.model.flops`, the same for both sides, over the best matmul rate of
the same process. Bytes are XLA's plan for the step and the peak of the allocator. Needs only jax,
flax, optax, numpy, torch and transformers.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from mcr_jax.errors import one_line
from mcr_jax.model import flops
from mcr_jax.model.shape import DecoderConfig, Rope

from . import matmul_size, timed

SHAPES = {
    "7b": {
        "vocab_size": 152_064,
        "layers": 28,
        "width": 3584,
        "heads": 28,
        "kv_heads": 4,
        "head_dim": 128,
        "mlp_width": 18_944,
    },
    "tiny": {
        "vocab_size": 512,
        "layers": 2,
        "width": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "mlp_width": 192,
    },
}
FAMILY = {"tied": False, "qkv_bias": True, "rope": Rope(theta=1e6), "dtype": "bfloat16"}
ROW_TOKENS = {"7b": 4096, "tiny": 256}
OPTIM = {"learning_rate": 1e-5, "warmup_steps": 0, "steps": 1000, "weight_decay": 0.1}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}
ATTENTIONS = ("flash_attention_3", "flash_attention_2", "sdpa")


class Measured(NamedTuple):
    """Seconds of a step, FLOPs per second of a matmul, and further figures to print."""

    seconds: float
    matmul: float
    more: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--side", choices=("both", "ours", "peer"), default="both")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--runs", type=int, default=10, help="number of steps; the median counts")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="full")
    parser.add_argument("--mu-dtype", choices=("float32", "bfloat16"), default="bfloat16")
    flags = parser.parse_args()
    if flags.side == "both":
        for side in ("ours", "peer"):
            call = [sys.executable, "-m", __spec__.name, *sys.argv[1:], f"--side={side}"]
            subprocess.run(call, check=True)
        return
    config = DecoderConfig(**SHAPES[flags.shape], **FAMILY, remat=flags.remat)
    batch, lengths = _batch(config.vocab_size, flags.rows, ROW_TOKENS[flags.shape])
    trained = int(batch["weights"].sum())
    measure = _ours if flags.side == "ours" else _transformers
    seconds, matmul, more = measure(config, batch, flags)
    counted = flops.step_flops(config, lengths, trained)
    figures = {
        "bench": "mfu",
        "side": flags.side,
        "shape": f"{flags.shape} {flags.rows}x{ROW_TOKENS[flags.shape]} bfloat16",
        "mfu": round(counted / seconds / matmul, 4),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
        "step_seconds": round(seconds, 4),
        "matmul_flops_per_second": round(matmul),
        "promised_flops_per_second": flops.peak(more["device"]),
        "convention": flops.CONVENTION,
    }
    print(json.dumps(figures | more), flush=True)


def _batch(vocab: int, rows: int, row_tokens: int) -> tuple[dict[str, np.ndarray], list[int]]:
    """Returns full rows of segments, each a prompt and a trained answer, and segment lengths.

    The arrays are those of `train.step`, each [rows, row_tokens].
    """
    rng, lengths = np.random.default_rng(0), []
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: np.zeros((rows, row_tokens), np.int32) for name in names}
    batch["weights"] = np.zeros((rows, row_tokens), np.float32)
    for row in range(rows):
        start = segment = 0
        while start < row_tokens:
            sizes = np.array([rng.integers(250, 900), rng.integers(150, 600)])
            prompt, answer = (sizes * row_tokens // 4096).tolist()
            length, segment = min(prompt + answer, row_tokens - start), segment + 1
            stop, ids = start + length, rng.integers(0, vocab, length)
            batch["tokens"][row, start:stop] = ids
            batch["targets"][row, start : stop - 1] = ids[1:]
            batch["positions"][row, start:stop] = np.arange(length)
            batch["segment_ids"][row, start:stop] = segment
            batch["weights"][row, start + prompt - 1 : stop - 1] = 1
            lengths.append(length)
            start = stop
    return batch, lengths


def _ours(config: DecoderConfig, batch: dict[str, np.ndarray], flags) -> Measured:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    import jax
    import jax.numpy as jnp

    from mcr_jax.model.abstract import abstract_decoder, initial_params
    from mcr_jax.train.optimizer import optimizer
    from mcr_jax.train.step import init_state, train_step

    device = jax.devices()[0]
    size = matmul_size(device.platform)
    product, x = jax.jit(lambda x: x @ x), jnp.ones((size, size), jnp.bfloat16)
    matmul = 2 * size**3 / min(timed(lambda: product(x).block_until_ready(), 10))
    tx, schedule = optimizer(**OPTIM, mu_dtype=flags.mu_dtype)
    state = jax.jit(lambda: init_state(initial_params(config, 0), tx))()
    placed = jax.device_put(batch)
    step = jax.jit(
        train_step(abstract_decoder(config)[0], tx, schedule, compute="bfloat16"), donate_argnums=0
    )
    compiled = step.lower(state, placed).compile()
    losses = []

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, placed)
        losses.append(float(metrics["loss"]))

    seconds = float(np.median(timed(run, flags.runs)))
    plan = compiled.memory_analysis()
    more = {
        "device": device.device_kind,
        "first_loss": round(losses[0], 4),
        "remat": flags.remat,
        "planned_bytes": plan.argument_size_in_bytes + plan.temp_size_in_bytes,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }
    return Measured(seconds, matmul, more)


def _transformers(config: DecoderConfig, batch: dict[str, np.ndarray], flags) -> Measured:
    import torch

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    size = matmul_size(device)
    x = torch.ones((size, size), dtype=torch.bfloat16, device=device)

    def product() -> None:
        x @ x
        if cuda:
            torch.cuda.synchronize()

    matmul = 2 * size**3 / min(timed(product, 10))
    # One row of all segments: transformers begins a segment where positions begin again.
    labels = np.where(batch["weights"] > 0, batch["targets"], -100).reshape(1, -1)
    inputs = {
        "input_ids": batch["tokens"].reshape(1, -1),
        "position_ids": batch["positions"].reshape(1, -1),
        "labels": np.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=-100),
    }
    inputs = {k: torch.from_numpy(v.astype(np.int64)).to(device) for k, v in inputs.items()}
    measured, refused = {}, {}
    for attention in ATTENTIONS:
        try:
            measured[attention] = _transformers_step(config, inputs, attention, flags)
        except (ImportError, ValueError) as error:  # its errors about a missing kernel
            refused[attention] = one_line(str(error).splitlines()[0], 200)
    best = min(measured, key=lambda name: measured[name][0])
    seconds, loss = measured[best]
    more = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "first_loss": round(loss, 4),
        "attention": best,
        "refused": refused,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }
    return Measured(seconds, matmul, more)


def _transformers_step(config: DecoderConfig, inputs, attention: str, flags) -> tuple[float, float]:
    """Returns the median seconds of a step and the first loss."""
    import torch
    import transformers

    shape = transformers.Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        tie_word_embeddings=config.tied,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        max_position_embeddings=32_768,
    )
    torch.manual_seed(0)
    with inputs["input_ids"].device:
        model = transformers.AutoModelForCausalLM.from_config(
            shape, dtype=torch.bfloat16, attn_implementation=attention
        ).train()
    if flags.remat != "none":
        model.gradient_checkpointing_enable()
    optim = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIM["learning_rate"],
        betas=(OPTIM["b1"], OPTIM["b2"]),
        weight_decay=OPTIM["weight_decay"],
        fused=True,
    )
    losses = []

    def run() -> None:
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM["clip_norm"])
        optim.step()
        optim.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return float(np.median(timed(run, flags.runs))), losses[0]


if __name__ == "__main__":
    main()
