"""Plans a training run on given devices from abstract shapes, before any weight is read.

made = plan(config, devices("8 x H100"))
made.memory.total, made.hours, made.problem
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from mcr_jax.config import fields
from mcr_jax.errors import UsageError
from mcr_jax.experiment import parts
from mcr_jax.model.devices import Devices
from mcr_jax.model.flops import step_flops
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import AXES, mesh_sizes
from mcr_jax.plan.timing import MFU, RATE, Traffic, seconds, traffic
from mcr_jax.plan.training_bytes import Memory, Parameter, memory, parameters
from mcr_jax.train.mesh import rows_of_part
from mcr_jax.train.trainer import configured

USABLE = 0.92  # share of a device's memory; runtime, collectives and fragmentation need the rest
# MedCaseReasoning's train split: cases, and tokens of a case with its prompt.
CASES, CASE_TOKENS = 13_092, 950
FILL = 0.98  # share of a packed row without padding
TRAINED = 0.4  # share of a case's tokens in the loss: its answer

PARTS = {  # labels of the fields of `Memory`
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "batch": "the batch",
    "gradients": "gradients",
    "copies": "weights cast to compute",
    "activations": "activations kept",
    "gathered": "gathered layer and embedding",
    "work": "temporaries",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a run.

    Attributes:
      devices: that run it.
      mesh: size of each axis.
      parameters: with their shardings.
      memory: bytes needed on one device.
      usable: bytes available on one device.
      fused: whether attention runs in a kernel, not in plain XLA.
      rows: of a microbatch on one device.
      row_tokens: tokens of a row, padding included.
      step_tokens: tokens of a step, padding included.
      steps: of the run; estimated from `CASES` where the config counts epochs.
      epochs: as configured; 0 where the config counts steps.
      flops: of a step, all devices together.
      traffic: bytes of a step on one device.
      hours: lower and upper estimate for the run (`timing.seconds`); None without a known peak.
      problem: why the run does not fit and what would help, in a line; "" if it fits.
    """

    devices: Devices
    mesh: dict[str, int]
    parameters: tuple[Parameter, ...]
    memory: Memory
    usable: int
    fused: bool
    rows: int
    row_tokens: int
    step_tokens: int
    steps: int
    epochs: float
    flops: float
    traffic: Traffic
    hours: tuple[float, float] | None
    problem: str

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON data, with totals."""
        plain = dataclasses.asdict(self)
        for one, written in zip(self.parameters, plain["parameters"], strict=True):
            written["spec"] = [*one.spec]
        totals = {"memory_total": self.memory.total, "parameters_total": count(self.parameters)}
        assumed = {"mfu_assumed": MFU, "rate_assumed": RATE, "usable_share_assumed": USABLE}
        return plain | totals | assumed


def count(of: tuple[Parameter, ...]) -> int:
    """Returns the number of parameters, of all arrays together."""
    return sum(one.size for one in of)


def plan(
    config: ConfigDict,
    devices: Devices,
    *,
    cases: int = CASES,
    case_tokens: int = CASE_TOKENS,
) -> Plan:
    """Plans config.train on `devices`, with the sharding of every parameter.

    Args:
      config: sections model, lora, optim, mesh and train, and `attention`, are read.
      devices: from `devices.devices`; need not exist.
      cases, case_tokens: of an epoch, where the config counts epochs.

    Raises:
      McrError: config.model.folder cannot be read.
      UsageError: config.mesh does not fit the devices, or config.train.rows the mesh, or
        config.lora the model; or the shape of config.model is unknown.
    """
    shape = parts.decoder_shape(config)
    made = _plan(config, shape, devices, cases, case_tokens)
    if made.memory.total <= made.usable:
        return made
    return dataclasses.replace(made, problem=_problem(config, shape, made))


def _plan(
    config: ConfigDict, shape: DecoderConfig, devices: Devices, cases: int, case_tokens: int
) -> Plan:
    c, mesh = config.train, _mesh(config, devices.count)
    fused = _fused(config, shape, devices)
    tokens = c.rows * c.row_tokens * FILL
    steps = math.ceil(c.epochs * cases * case_tokens / tokens) if c.epochs else c.steps
    segments = max(1, round(tokens / case_tokens))
    one = step_flops(shape, [int(tokens / segments)], int(TRAINED * tokens / segments))
    work, placed = segments * one, parameters(shape, mesh)
    rows = rows_of_part(mesh, c.rows, c.accumulate)
    needed = memory(
        shape,
        mesh,
        rows=c.rows,
        row_tokens=c.row_tokens,
        accumulate=c.accumulate,
        compute=c.compute,
        tx=configured(config.optim, 1)[0],
        fused=fused,
    )
    passed = traffic(
        shape,
        mesh,
        placed,
        part_tokens=rows * c.row_tokens,
        parts=c.accumulate,
        compute_bytes=2 if c.compute == "bfloat16" else 4,
        optimizer_bytes=needed.optimizer,
    )
    each = seconds(work, passed, devices)
    return Plan(
        devices=devices,
        mesh=dict(mesh.shape),
        parameters=placed,
        memory=needed,
        usable=int(USABLE * devices.bytes),
        fused=fused,
        rows=rows,
        row_tokens=c.row_tokens,
        step_tokens=c.rows * c.row_tokens,
        steps=steps,
        epochs=c.epochs,
        flops=work,
        traffic=passed,
        hours=each and (steps * each[0] / 3600, steps * each[1] / 3600),
        problem="",
    )


def _mesh(config: ConfigDict, devices: int) -> AbstractMesh:
    """Returns the abstract mesh of config.mesh over a number of devices."""
    try:
        return AbstractMesh(mesh_sizes(**config.mesh, devices=devices), AXES)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fused(config: ConfigDict, shape: DecoderConfig, devices: Devices) -> bool:
    """Returns whether `model.attention` would choose a kernel on these devices."""
    if config.attention == "xla" or shape.head_dim > devices.fused_head_dim:
        return False
    return devices.fused_float32 or config.train.compute == "bfloat16"


def _problem(config: ConfigDict, shape: DecoderConfig, made: Plan) -> str:
    """Describes in a line how much is missing, the largest part, and changes that help."""
    parts = dataclasses.asdict(made.memory)
    largest = max(parts, key=lambda name: parts[name])
    found = "; or ".join(_remedies(config, shape, made))
    found = f"it would fit {found}" if found else "nothing that was tried makes it fit"
    return (
        f"{made.memory.total / 1e9:.1f} GB do not fit into the {made.usable / 1e9:.1f} that "
        f"{made.devices} can use each; the largest part is {PARTS[largest]}, "
        f"{parts[largest] / 1e9:.1f} GB; {found}"
    )


def _remedies(config: ConfigDict, shape: DecoderConfig, made: Plan) -> Iterator[str]:
    """Yields changes under which the run fits, as config fields and devices."""

    def first(tries: Iterable[tuple[dict[str, Any], int]]) -> Iterator[str]:
        for changes, devices in tries:
            if _fits(config, shape, dataclasses.replace(made.devices, count=devices), changes):
                now = dict(fields(config))
                said = [f"config.{name}={to}" for name, to in changes.items() if now[name] != to]
                said = ["with " + ", ".join(said)] if said else []
                yield " ".join([f"on {devices} x {made.devices.kind}"] * (devices != here) + said)
                return

    here, parts = made.devices.count, made.rows * config.train.accumulate
    one_row = {"train.remat": "full", "train.accumulate": parts}  # a microbatch of one per device
    cut = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1}
    settings = (
        {"train.remat": "full"},
        {"train.accumulate": parts},
        one_row,
        one_row | cut,
        *(
            one_row | cut | {"mesh.tensor": tensor, "train.accumulate": accumulate}
            for tensor in (2, 4, 8)
            for accumulate in (1, parts, tensor * parts)
        ),
        one_row | {"optim.mu_dtype": "bfloat16"},
    )
    yield from first((changes, here) for changes in settings)
    if not config.lora.rank:
        adapters = {"lora.rank": 32, "model.dtype": "bfloat16"}
        yield from first((changes, here) for changes in (adapters, adapters | one_row))
    wider = ({"mesh.fsdp": -1}, {"mesh.fsdp": -1, "train.accumulate": 1})
    yield from first((changes, here * more) for more in (2, 4, 8, 16, 32) for changes in wider)


def _fits(
    config: ConfigDict, shape: DecoderConfig, devices: Devices, changes: dict[str, Any]
) -> bool:
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(changes)
    try:
        made = _plan(changed, shape, devices, CASES, CASE_TOKENS)
    except UsageError:  # rows or mesh do not divide
        return False
    return made.memory.total <= made.usable
