"""Plans decode memory, number of slots and mesh before sampling starts.

The number of slots depends on the config, the model and the machine alone, not on the rows that are
left or the memory that happens to be free: a resumed run has the same shapes, hence the same
rounding, as an uninterrupted one.
"""

import bisect
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.engine.decode_attention import BLOCK, TILE, room
from mcr_jax.generate.engine.state import SLOT_MULTIPLE, Shape, blueprint, layer_kernel
from mcr_jax.model import blockwise_attention
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import AXES, abstract, bytes_per_device, make_mesh, shardings

USABLE = 0.92  # share of a device's memory; runtime, programs and fragmentation take the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices to sample on.

    Attributes:
      kind: device kind, as jax names it.
      count: number of devices.
      bytes: memory of one device.
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
      weights: parameters of the decoder.
      prompts: KV cache of prompts.
      answers: KV cache of answers.
      output: first logits of prompts, output buffers and queue.
      work: upper estimate of the temporary memory of a decode step or a prefill.
      twice: second copy of the largest parameter while the stacked layers are split, before the KV
        cache is allocated.
    """

    weights: int
    prompts: int
    answers: int
    output: int
    work: int
    twice: int

    @property
    def total(self) -> int:
        """Peak bytes."""
        sampling = self.prompts + self.answers + self.output + self.work
        return self.weights + max(self.twice, sampling)

    def __str__(self) -> str:
        parts = dataclasses.asdict(self)
        if self.total > self.weights + self.twice:
            del parts["twice"]
        return ", ".join(f"{name} {_readable(size)}" for name, size in parts.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of sampling a decoder on a machine.

    Attributes:
      config: shape of the decoder, without adapters.
      shape: sizes of the engine of each replica, with the slots that fit.
      wanted: slots in the config.
      machine: devices of the plan.
      data, tensor: number of replicas, and devices per replica.
      kernel: kernel of decoding attention.
      memory: bytes on each device.
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
        """Returns the mesh of all devices of this process."""
        return make_mesh(self.data, 1, self.tensor)

    @property
    def kv_dtype(self) -> str:
        """Dtype of the KV cache."""
        return self.shape.kv_dtype or self.config.dtype

    def lines(self) -> Iterator[str]:
        """Yields the plan for people."""
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
            f"on each device: {self.memory}: {_readable(self.memory.total)} of "
            f"{_readable(USABLE * self.machine.bytes)} usable ({_readable(self.machine.bytes)})"
        )
        fewer = f" of {self.wanted} wanted" if self.shape.slots < self.wanted else ""
        all_ = f" for each copy, {self.data * self.shape.slots} in all" if self.data > 1 else ""
        yield f"{self.shape.slots} slots{fewer}{all_}"

    def facts(self) -> dict[str, Any]:
        """Returns the plan for the manifest."""
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
    """Plans the mesh and the slots for sampling.

    The slot count is a multiple of 8, at least 8 and at most `wanted.slots`. A replica takes the
    smallest number of devices on which all wanted slots fit. Where they fit on none, it takes the
    number of devices that allows the most slots over all replicas.

    Args:
      config: shape of the decoder; adapters count as merged.
      wanted: sizes of the engine of each replica.
      machine: devices to plan for.
      kernel: kernel of decoding attention.
      tensor: number of devices per replica; 0 chooses.
      section: section of the config with the sizes, for errors.

    Raises:
      UsageError: `tensor` does not divide the number of devices.
      McrError: not even 8 slots fit.
    """
    if tensor and machine.count % tensor:
        raise UsageError(
            f"config.sample.tensor={tensor} does not divide the {machine.count} devices; 0 chooses"
        )
    config = dataclasses.replace(config, lora=None)
    most = max(1, wanted.slots // SLOT_MULTIPLE)  # multiples of 8 slots
    sizes = [n for n in range(1, machine.count + 1) if not machine.count % n]
    sizes.sort(key=lambda n: config.kv_heads % n > 0)  # last: each device has all KV heads then
    sizes = [tensor] if tensor else sizes

    def planned(tensor: int, multiple: int) -> Plan:
        slots = multiple * SLOT_MULTIPLE
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

    def largest_multiple(tensor: int) -> int:
        def is_too_large(multiple: int) -> bool:
            return planned(tensor, multiple).memory.total > USABLE * machine.bytes

        return bisect.bisect(range(1, most + 1), False, key=is_too_large)

    fitting: list[Plan] = []
    for size in sizes:
        multiple = largest_multiple(size)
        if multiple == most:
            return planned(size, most)
        if multiple:
            fitting.append(planned(size, multiple))
    if not fitting:
        raise _too_large(planned(sizes[-1], 1), section)
    return max(fitting, key=lambda plan: plan.data * plan.shape.slots)


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
        # The host reads copies of the output: two, as one chunk is read while the next runs.
        output=bytes_per_device(state._replace(layers=())) + 2 * bytes_per_device(state.output),
        work=max(_step(config, shape, tensor, kernel), _prefill(config, shape, tensor)),
        twice=max(bytes_per_device(stack) for stack in weights["layers"].values()),
    )


def _step(c: DecoderConfig, shape: Shape, tensor: int, kernel: str) -> int:
    """Estimates peak bytes of a decode step: of one attention, or of the logits and sampling."""
    size, slots = jnp.dtype(c.dtype).itemsize, shape.slots
    kv_size = jnp.dtype(shape.kv_dtype or c.dtype).itemsize
    logits = slots * _per_device(c.vocab_size, tensor)
    logits += 5 * _per_device(slots, tensor) * c.vocab_size
    hidden = slots * (4 * c.width + 4 * _per_device(c.mlp_width, tensor))
    if "xla" not in {layer_kernel(c, shape, kernel, index) for index in range(c.layers)}:
        return 4 * (logits + hidden)
    heads, kv_heads = _heads(c, tensor)
    tile = TILE if jax.default_backend() == "cpu" else shape.prompts
    attention = 0
    for n, total, members, length in (
        (min(shape.prompts, tile), shape.prompts, shape.share, shape.prompt_tokens),
        (slots, slots, 1, shape.max_tokens),
    ):
        places = room(length, kernel)
        block = min(BLOCK, places)
        # A slice of the cache, and its copy in the dtype of the computation.
        copies = (places > block or total > n) * kv_size + (kv_size != size) * size
        read = 2 * n * kv_heads * block * c.head_dim * copies
        attention += read + 3 * n * members * heads * block * 4
    return max(4 * logits, attention) + 4 * hidden


def _prefill(c: DecoderConfig, shape: Shape, tensor: int) -> int:
    """Estimates peak bytes of one layer in prefill."""
    tokens, size = shape.prompt_tokens, jnp.dtype(c.dtype).itemsize
    heads, kv_heads = _heads(c, tensor)
    streams = (3 * c.width + 2 * (heads + 2 * kv_heads) * c.head_dim) * 4
    block = min(blockwise_attention.BLOCK, tokens)
    mlp = 3 * _per_device(c.mlp_width, tensor) * size
    return tokens * (mlp + streams) + 2 * heads * block * block * 4


def _heads(c: DecoderConfig, tensor: int) -> tuple[int, int]:
    """Returns the query and key heads of one device."""
    if c.kv_heads % tensor:
        return c.heads, c.kv_heads
    return c.heads // tensor, c.kv_heads // tensor


def _per_device(size: int, tensor: int) -> int:
    return size // tensor if size % tensor == 0 else size


def _readable(size: float) -> str:
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
        f"not even {SLOT_MULTIPLE} slots fit: with {plan.tensor} x {plan.machine.kind} for a copy "
        f"of the model, each needs {_readable(plan.memory.total)} ({plan.memory}) and has "
        f"{_readable(usable)} usable: {', or '.join(help_)}"
    )
