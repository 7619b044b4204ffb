"""Time of a training step on paper: arithmetic, memory traffic and exchange between devices.

Bytes follow from how parameters lie on the mesh; rates are those of the data sheets at an assumed
share. Nothing here was measured.
"""

import dataclasses
import math

from jax.sharding import AbstractMesh

from mcr_jax.model.devices import Devices
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.plan.training_bytes import Parameter

MFU = (0.35, 0.55)  # assumed, of the peak arithmetic; what well-fed dense decoders reach
RATE = (0.4, 0.8)  # assumed, of the bandwidth of memory and links; what large transfers reach
_REDUCED = 4  # bytes of a gradient on its way to other devices: float32


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

    A part of a step gathers the weights over fsdp for its forward and for its backward pass, and
    reduces gradients over fsdp and data; tensor parallelism reduces the activations twice a layer
    in each direction and in what remat computes again. Ring algorithms: of N devices each receives
    (N - 1) / N of what is gathered, twice that of what is summed for all.

    Args:
      shape: of the decoder; its width, layers and remat policy are read.
      mesh: axes data, fsdp and tensor.
      parameters: as `memory.parameters` places them.
      part_tokens: tokens of a part of a step on one device.
      parts: of a step.
      compute_bytes: of a number in the dtype that the forward pass computes in.
      optimizer_bytes: of the optimizer state on one device.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    weights = sum(one.size for one in parameters) // tensor  # of one row of the mesh along fsdp
    trained = sum(one.size for one in parameters if one.trained) // tensor
    passes = 2 if shape.remat == "none" else 3  # forward, again, backward
    gathered = 2 * _others(fsdp) * weights * compute_bytes
    reduced = (_others(fsdp) * trained + 2 * _others(data) * trained / fsdp) * _REDUCED
    activations = 2 * passes * shape.layers * part_tokens * shape.width * compute_bytes
    summed = 2 * _others(tensor) * activations
    held = sum(math.prod(one.shard) for one in parameters if one.trained) * 4
    return Traffic(
        exchanged=round(parts * (gathered + reduced + summed)),
        moved=round(parts * passes * weights * compute_bytes + 2 * (held + optimizer_bytes)),
    )


def seconds(flops: float, bytes: Traffic, devices: Devices) -> tuple[float, float] | None:
    """The shortest and the longest time of a step; None where no peak is known.

    The shortest overlaps arithmetic, memory and links at the upper shares of `MFU` and `RATE`, so
    the slowest of them counts; the longest does one after the other at the lower shares.

    Args:
      flops: operations of a step, all devices together.
      bytes: of one device.
      devices: what the step runs on.
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
    """The share that other devices of a ring hold."""
    return (devices - 1) / devices
