"""Estimates the time of a training step from arithmetic, memory traffic and communication.

Bytes follow from the sharding of the parameters, rates from data sheets and an assumed share.
Nothing here was measured.
"""

import dataclasses
import math

from jax.sharding import AbstractMesh

from mcr_jax.model.devices import Devices
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.plan.training_bytes import Parameter

MFU = (0.35, 0.55)  # assumed shares of peak FLOP/s, as dense decoders reach
RATE = (0.4, 0.8)  # assumed shares of memory and link bandwidth, as large transfers reach
_GRADIENT_BYTES = 4  # of a reduced gradient: float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one device in one step.

    Attributes:
      exchanged: received from other devices: weights gathered, gradients and activations reduced.
      moved: between the device and its memory: weights read, optimizer state updated.
    """

    exchanged: int
    moved: int


def traffic(
    shape: DecoderConfig,
    mesh: AbstractMesh,
    parameters: tuple[Parameter, ...],
    *,
    part_tokens: int,
    parts: int,
    compute_bytes: int,
    optimizer_bytes: int,
) -> Traffic:
    """Counts the bytes of a step.

    A microbatch gathers the weights over fsdp for its forward and for its backward pass, and
    reduces gradients over fsdp and data. Tensor parallelism reduces the activations twice a layer
    in each pass, rematerialization included. With ring algorithms each of N devices receives
    (N - 1) / N of an all-gather and twice that of an all-reduce.

    Args:
      shape: of the decoder.
      mesh: axes data, fsdp and tensor.
      parameters: from `training_bytes.parameters`.
      part_tokens: tokens of a microbatch on one device.
      parts: microbatches of a step.
      compute_bytes: size of the forward pass's dtype.
      optimizer_bytes: of the optimizer state on one device.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    weights = sum(one.size for one in parameters) // tensor  # of one row of the mesh along fsdp
    trained = sum(one.size for one in parameters if one.trained) // tensor
    passes = 2 if shape.remat == "none" else 3  # forward, again, backward
    gathered = 2 * _others(fsdp) * weights * compute_bytes
    reduced = (_others(fsdp) * trained + 2 * _others(data) * trained / fsdp) * _GRADIENT_BYTES
    activations = 2 * passes * shape.layers * part_tokens * shape.width * compute_bytes
    summed = 2 * _others(tensor) * activations
    held = sum(math.prod(one.shard) for one in parameters if one.trained) * 4
    return Traffic(
        exchanged=round(parts * (gathered + reduced + summed)),
        moved=round(parts * passes * weights * compute_bytes + 2 * (held + optimizer_bytes)),
    )


def seconds(flops: float, bytes: Traffic, devices: Devices) -> tuple[float, float] | None:
    """Returns the shortest and the longest time of a step; None for devices without a known peak.

    The shortest overlaps arithmetic, memory and links at the upper shares of `MFU` and `RATE`. The
    longest does them one after the other at the lower shares.

    Args:
      flops: of a step, all devices together.
      bytes: of one device.
      devices: that run the step.
    """
    if devices.flops is None:
        return None

    def times(mfu: float, rate: float) -> tuple[float, float, float]:
        return (
            flops / (devices.flops * devices.count * mfu),
            bytes.exchanged / (devices.link * rate),
            bytes.moved / (devices.bandwidth * rate),
        )

    return max(times(MFU[1], RATE[1])), sum(times(MFU[0], RATE[0]))


def _others(devices: int) -> float:
    """Returns the share of the other devices in a ring."""
    return (devices - 1) / devices
