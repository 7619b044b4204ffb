"""Operations of a training step and peak rates of devices, for MFU.

The convention is PaLM's (Chowdhery et al., 2022, appendix B), exact where that rounds up: a weight
costs 2 operations per token forwards, 2 for the gradient of its input and 2 for its own; attention
counts the visible pairs of query and key; the head counts the tokens in the loss. Padding and
rematerialization count nothing.
"""

import math
from collections.abc import Iterable

from mcr_jax.model.shape import PROJECTIONS, DecoderConfig

CONVENTION = "causal pairs and real tokens only, nothing computed again counted"

# Dense bfloat16 operations per second with float32 sums, by the first words of a device's kind; the
# longest match counts. Sources: docs.cloud.google.com/tpu/docs for TPUs; NVIDIA's data
# sheet of each data center GPU (of the A10G the one that AWS publishes); for GeForce the appendices
# of NVIDIA's GA102, Ada and RTX Blackwell whitepapers. Figures with sparsity are halved.
PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak(device_kind: str) -> float | None:
    """Returns bfloat16 operations per second of one device of `device_kind`; None if unknown.

    A longer GeForce name, such as with "Ti" or "Laptop GPU", is another device.
    """
    known = [
        name
        for name in PEAKS
        if device_kind == name
        or ("GeForce" not in name and device_kind.startswith((f"{name} ", f"{name}-")))
    ]
    return PEAKS[max(known, key=len)] if known else None


def step_flops(config: DecoderConfig, lengths: Iterable[int], trained: int) -> float:
    """Counts the operations of a forward and a backward pass.

    Args:
      config: of the decoder. With `lora` the weights of the layers get no gradient of their own.
      lengths: tokens of each segment of the batch.
      trained: tokens in the loss.
    """
    lengths = list(lengths)
    per_weight = 4 if config.lora else 6
    dense = sum(_size(config, name) for name in PROJECTIONS)
    adapters = sum(_size(config, name, adapter=True) for name in _adapted(config))
    per_token = config.layers * (per_weight * dense + 6 * adapters)
    head = per_weight * config.vocab_size * config.width
    attention = (
        12
        * config.heads
        * config.head_dim
        * sum(
            sum(_pairs(n, config.window if config.is_local(layer) else None) for n in lengths)
            for layer in range(config.layers)
        )
    )
    return float(per_token * sum(lengths) + head * trained + attention)


def _adapted(config: DecoderConfig) -> tuple[str, ...]:
    return config.lora.targets if config.lora else ()


def _size(config: DecoderConfig, name: str, adapter: bool = False) -> int:
    inputs, outputs = (math.prod(side) for side in config.projection(name))
    return config.lora.rank * (inputs + outputs) if adapter else inputs * outputs


def _pairs(length: int, window: int | None) -> int:
    """Counts the (query, key) pairs of causal attention over `length` tokens."""
    seen = length if window is None else min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen
