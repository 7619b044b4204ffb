"""Plans decode memory, number of slots and mesh before sampling starts.

How many slots there are follows from the config, the model and the machine alone, never from what
is left to do or from memory that happens to be free: a run that goes on computes with the same
shapes, hence with the same rounding, as one that was never interrupted.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.engine.decode_attention import BLOCK, TILE, room
from mcr_jax.generate.engine.state import Shape, blueprint, layer_kernel
from mcr_jax.model import blockwise_attention
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import AXES, abstract, bytes_per_device, make_mesh, shardings

USABLE = 0.92  # of a device's memory; the runtime, its programs and gaps take the rest
_EIGHT = 8  # slots come in eights: so many rows at least make a product with a weight worthwhile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices to sample on.

    Attributes:
      kind: of its devices, as jax calls them.
      count: of devices.
      bytes: memory of one.
    """

    kind: str
    count: int
    bytes: int


def machine() -> Machine:
    """Returns the devices of this process; CPU devices share the machine's memory."""
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return Machine(
        kind=devices[0].device_kind,
        count=len(devices),
        bytes=stats.get("bytes_limit") or physical,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
      weights: of the decoder.
      prompts: keys and values of prompts.
      answers: keys and values of what is written.
      output: logits behind the prompts, the tokens written and what is wanted next.
      work: an upper estimate of what a step, or the prefill of a prompt, has beside at a time.
      twice: of the weights, the kind that is there twice while the layers are taken apart, when
        nothing else is there yet.
    """

    weights: int
    prompts: int
    answers: int
    output: int
    work: int
    twice: int

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        sampling = self.prompts + self.answers + self.output + self.work
        return self.weights + max(self.twice, sampling)

    def __str__(self) -> str:
        parts = dataclasses.asdict(self)
        if self.total > self.weights + self.twice:
            del parts["twice"]
        return ", ".join(f"{name} {_told(size)}" for name, size in parts.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of sampling a decoder on a machine.

    Attributes:
      config: of the decoder, without adapters.
      shape: of the engine on each copy of the model, with the slots that fit.
      wanted: slots that were asked for.
      machine: what it is for.
      data, tensor: copies of the model, and devices that hold one together.
      kernel: of decoding attention.
      memory: of each device.
    """

    config: DecoderConfig
    shape: Shape
    wanted: int
    machine: Machine
    data: int
    tensor: int
    kernel: str
    memory: Memory

    def mesh(self) -> Mesh:
        """All devices of this process, laid out as planned."""
        return make_mesh(self.data, 1, self.tensor)

    @property
    def kv_dtype(self) -> str:
        """The dtype of keys and values."""
        return self.shape.kv_dtype or self.config.dtype

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        copies = "1 copy" if self.data == 1 else f"{self.data} copies"
        yield (
            f"{self.machine.count} x {self.machine.kind}: {copies} of the model "
            f"(mesh: data {self.data}, tensor {self.tensor})"
        )
        yield (
            f"weights {self.config.dtype}, keys and values {self.kv_dtype}, "
            f"decoding attention {'xla' if self.kernel == 'xla' else 'pallas'}"
        )
        yield (
            f"on each device: {self.memory}: {_told(self.memory.total)} of "
            f"{_told(USABLE * self.machine.bytes)} usable ({_told(self.machine.bytes)})"
        )
        fewer = f" of {self.wanted} wanted" if self.shape.slots < self.wanted else ""
        all_ = f" for each copy, {self.data * self.shape.slots} in all" if self.data > 1 else ""
        yield f"{self.shape.slots} slots{fewer}{all_}"

    def facts(self) -> dict[str, Any]:
        """The plan for the manifest."""
        return {
            "devices": f"{self.machine.count} x {self.machine.kind}",
            "device_bytes": self.machine.bytes,
            "mesh": {"data": self.data, "tensor": self.tensor},
            "dtype": self.config.dtype,
            "kv_dtype": self.kv_dtype,
            "kernel": self.kernel,
            "bytes_per_device": dataclasses.asdict(self.memory),
            "slots": self.shape.slots,
            "share": self.shape.share,
            "prompt_tokens": self.shape.prompt_tokens,
            "max_tokens": self.shape.max_tokens,
        }


def plan(
    config: DecoderConfig,
    wanted: Shape,
    machine: Machine,
    kernel: str,
    *,
    tensor: int = 0,
    section: str = "sample",
) -> Plan:
    """The mesh and the slots for sampling.

    Slots are a multiple of 8, at least 8, at most `wanted.slots`. Of the numbers of devices that
    a copy of the model may lie on, the smallest is taken on which all that are wanted fit, or where
    none has room for that, the one with which most are written at a time by all copies.

    Args:
      config: of the decoder; adapters count as merged.
      wanted: sizes of the engine on each copy.
      machine: what there is.
      kernel: of decoding attention.
      tensor: devices of a copy; 0 chooses.
      section: of the config that the sizes come from, for errors.

    Raises:
      UsageError: `tensor` does not divide the devices.
      McrError: not even 8 slots fit.
    """
    if tensor and machine.count % tensor:
        raise UsageError(
            f"config.sample.tensor={tensor} does not divide the {machine.count} devices; 0 chooses"
        )
    config = dataclasses.replace(config, lora=None)
    most = max(_EIGHT, wanted.slots - wanted.slots % _EIGHT)
    sizes = [n for n in range(1, machine.count + 1) if not machine.count % n]
    sizes.sort(key=lambda n: config.kv_heads % n > 0)  # else each would keep and read all heads
    sizes = [tensor] if tensor else sizes

    def made(tensor: int, slots: int) -> Plan:
        shape = dataclasses.replace(wanted, slots=slots)
        return Plan(
            config=config,
            shape=shape,
            wanted=wanted.slots,
            machine=machine,
            data=machine.count // tensor,
            tensor=tensor,
            kernel=kernel,
            memory=memory(config, shape, tensor, kernel),
        )

    def fits(plan: Plan) -> bool:
        return plan.memory.total <= USABLE * machine.bytes

    best: Plan | None = None
    for size in sizes:
        low, high = 0, most // _EIGHT  # so many eights fit, and no more than so many
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(made(size, middle * _EIGHT)) else (low, middle - 1)
        if not low:
            continue
        found = made(size, low * _EIGHT)
        if found.shape.slots == most:
            return found
        if best is None or found.data * found.shape.slots > best.data * best.shape.slots:
            best = found
    if best is None:
        raise _too_large(made(sizes[-1], _EIGHT), section)
    return best


def memory(config: DecoderConfig, shape: Shape, tensor: int, kernel: str) -> Memory:
    """Estimates bytes per device of an engine of `shape` over `tensor` devices."""
    mesh = AbstractMesh((1, 1, tensor), AXES, axis_types=(AxisType.Auto,) * 3)
    weights = abstract_decoder(config)[1]
    weights = abstract(weights, shardings(mesh, weights))
    state = blueprint(config, shape, mesh, kernel)
    prompts = bytes_per_device([(x.prompt_keys, x.prompt_values) for x in state.layers])
    answers = bytes_per_device([(x.keys, x.values) for x in state.layers])
    return Memory(
        weights=bytes_per_device(weights),
        prompts=prompts,
        answers=answers,
        # The host reads copies of what is written, of one chunk while the next is under way.
        output=bytes_per_device(state._replace(layers=())) + 2 * bytes_per_device(state.output),
        work=max(_step(config, shape, tensor, kernel), _prefill(config, shape, tensor)),
        twice=max(bytes_per_device(stack) for stack in weights["layers"].values()),
    )


def _step(c: DecoderConfig, shape: Shape, tensor: int, kernel: str) -> int:
    """Peak bytes of a decode step: one attention, or the logits and their weights."""
    size, slots = jnp.dtype(c.dtype).itemsize, shape.slots
    kept = jnp.dtype(shape.kv_dtype or c.dtype).itemsize
    drawn = slots // tensor if slots % tensor == 0 else slots
    logits = slots * _cut(c.vocab_size, tensor) + 5 * drawn * c.vocab_size
    hidden = slots * (4 * c.width + 4 * _cut(c.mlp_width, tensor))
    if "xla" not in {layer_kernel(c, shape, kernel, index) for index in range(c.layers)}:
        return 4 * (logits + hidden)
    heads, kv_heads = _heads(c, tensor)
    tile = TILE if jax.default_backend() == "cpu" else shape.prompts
    attention = 0
    for n, of, members, length in (
        (min(shape.prompts, tile), shape.prompts, shape.share, shape.prompt_tokens),
        (slots, slots, 1, shape.max_tokens),
    ):
        places = room(length, kernel)
        block = min(BLOCK, places)
        # Cut out, and in the dtype that it is computed in.
        copies = (places > block or of > n) * kept + (kept != size) * size
        read = 2 * n * kv_heads * block * c.head_dim * copies
        attention += read + 3 * n * members * heads * block * 4
    return max(4 * logits, attention) + 4 * hidden


def _prefill(c: DecoderConfig, shape: Shape, tensor: int) -> int:
    """Peak bytes of one layer in prefill."""
    tokens, size = shape.prompt_tokens, jnp.dtype(c.dtype).itemsize
    heads, kv_heads = _heads(c, tensor)
    streams = (3 * c.width + 2 * (heads + 2 * kv_heads) * c.head_dim) * 4
    block = min(blockwise_attention.BLOCK, tokens)
    return tokens * (3 * _cut(c.mlp_width, tensor) * size + streams) + 2 * heads * block * block * 4


def _heads(c: DecoderConfig, tensor: int) -> tuple[int, int]:
    """Query and key heads of one device."""
    if c.kv_heads % tensor:
        return c.heads, c.kv_heads
    return c.heads // tensor, c.kv_heads // tensor


def _cut(size: int, tensor: int) -> int:
    return size // tensor if size % tensor == 0 else size


def _told(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _too_large(plan: Plan, section: str) -> McrError:
    part, usable, help_ = plan.memory, USABLE * plan.machine.bytes, []
    if plan.config.dtype == "float32":
        help_.append("set config.sample.dtype=bfloat16")
    if part.weights + part.twice <= usable:
        if plan.kv_dtype != "int8":
            help_.append("set config.sample.kv_dtype=int8")
        help_.append(f"lower config.{section}.prompt_tokens or config.{section}.max_tokens")
    help_.append("use more or larger devices")
    return McrError(
        f"not even {_EIGHT} slots fit: with {plan.tensor} x {plan.machine.kind} for a copy of the "
        f"model each needs {_told(plan.memory.total)} ({plan.memory}) and has "
        f"{_told(usable)} usable: {', or '.join(help_)}"
    )
