"""Tables of `mcr train --plan="8 x v5e"`: sharding, memory and time of a run there."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from mcr_jax.errors import McrError
from mcr_jax.model.devices import devices
from mcr_jax.plan.timing import MFU, RATE
from mcr_jax.plan.training import CASE_TOKENS, CASES, PARTS, USABLE, Plan, count, plan
from mcr_jax.plan.training_bytes import Parameter


def run(config: ConfigDict, text: str) -> None:
    """Prints the plan of `config` for the devices that `text` names.

    Raises:
      UsageError: `text` names no known devices, or config.mesh does not fit them.
      McrError: the run does not fit; the message names settings that would.
    """
    made = plan(config, devices(text))
    console = Console()
    for part in (_heading(config, made), _sharding(made), _memory(config, made), _time(made)):
        console.print(part, highlight=False)
        console.print()
    if made.problem:
        raise McrError(made.problem)


def _heading(config: ConfigDict, made: Plan) -> str:
    model = config.model.folder or config.model.shape or "the model of config.model"
    trained = count(tuple(p for p in made.parameters if p.trained))
    weights = f"{_large(trained)} parameters, all trained"
    if frozen := count(made.parameters) - trained:
        weights = f"{_large(frozen)} parameters, frozen; {_large(trained)} in adapters, trained"
    mesh = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items())
    lines = [
        config.name or "plan",
        f"{model}: {weights}",
        f"{made.devices}: {made.devices.bytes / 1e9:.0f} GB each; mesh {mesh}",
    ]
    there = made.devices
    if there.flops and not there.bfloat16 and config.train.compute == "bfloat16":
        lines.append(f"{there.kind} has no bfloat16 tensor cores: products run in float32")
    if there.machine and there.count > there.machine:
        lines.append(f"more than {there.machine}: the network between machines is not counted")
    return "\n".join(lines)


def _sharding(made: Plan) -> Table:
    table = _table("Sharding of parameters", "parameters", "sharded over", "shard")
    table.add_column("GB", justify="right", no_wrap=True)
    for group in _groups(made.parameters):
        first = group[0]
        held = sum(_held(one) for one in group)
        axes = [axis for axis in first.spec if axis and made.mesh[axis] > 1]
        over = " ".join(axes) or "replicated"
        shards = dict.fromkeys(" x ".join(map(str, one.shard)) for one in group)
        table.add_row(_names(group), over, "\n".join(shards), f"{held / 1e9:.3f}")
    return table


def _memory(config: ConfigDict, made: Plan) -> Table:
    c = config.train
    notes = {
        "parameters": config.model.dtype,
        "optimizer": config.optim.name,
        "gradients": "with float32 sums of the microbatches" if c.accumulate > 1 else "",
        "copies": c.compute,
        "activations": f"remat {c.remat}, {_rows(made.rows)} of {made.row_tokens:,} at a time",
        "work": "attention in a kernel" if made.fused else "attention in plain XLA",
    }
    table = _table("Memory of each device", "what", "how")
    table.add_column("GB", justify="right", no_wrap=True)
    for name, label in PARTS.items():
        value = getattr(made.memory, name)
        if value >= 1e6:
            table.add_row(label, notes.get(name, ""), f"{value / 1e9:.2f}")
    table.add_section()
    table.add_row("needed", "", f"{made.memory.total / 1e9:.2f}")
    table.add_row("usable", f"{100 * USABLE:.0f} % of it", f"{made.usable / 1e9:.2f}")
    return table


def _time(made: Plan) -> Table:
    table = _table("Time", "what", "how")
    table.add_column("", justify="right", no_wrap=True)
    counted = "config.train.steps"
    if made.epochs:
        counted = f"{made.epochs:g} epochs of {CASES:,} cases of {CASE_TOKENS} tokens"
    table.add_row("tokens per step", "padding included", f"{made.step_tokens:,}")
    table.add_row("steps", counted, f"{made.steps:,}")
    table.add_row("operations per step", "forward and backward", f"{made.flops / 1e15:,.2f} P")
    if made.hours is None:
        table.add_row("hours", "no peak is known here", "–")
        return table
    there = made.devices
    peak = f"{'bfloat16' if there.bfloat16 else 'float32'}, each {there.flops / 1e12:.4g} TFLOP/s"
    table.add_row("operations per second", peak, f"{there.count * there.flops / 1e15:,.3g} P")
    if made.traffic.exchanged:
        link = f"each receives, at up to {there.link / 1e9:,.0f} GB/s"
        table.add_row("exchanged per step", link, f"{made.traffic.exchanged / 1e9:,.2f} GB")
    moved = f"each, at up to {there.bandwidth / 1e9:,.0f} GB/s"
    table.add_row("weights and state moved", moved, f"{made.traffic.moved / 1e9:,.2f} GB")
    if not made.problem:  # no time for a run that does not fit
        assumed = (
            f"assuming {100 * MFU[1]:.0f} to {100 * MFU[0]:.0f} % of peak, "
            f"{100 * RATE[1]:.0f} to {100 * RATE[0]:.0f} % of GB/s; not measured"
        )
        unit, times = "hours", made.hours
        if times[1] < 1:
            unit, times = "minutes", tuple(60 * hours for hours in times)
        table.add_row(unit, assumed, f"{times[0]:,.1f} to {times[1]:,.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False
    )
    for column in columns:
        table.add_column(column)
    return table


def _groups(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """Groups parameters by sharding, in the order of the first of each group."""
    groups: dict[tuple, list[Parameter]] = {}
    for one in parameters:
        spec = tuple(one.spec) if any(one.spec) else ()
        groups.setdefault((spec, one.trained), []).append(one)
    yield from groups.values()


def _names(group: list[Parameter]) -> str:
    return ", ".join(one.name.removeprefix("layers.") for one in group)


def _held(one: Parameter) -> int:
    return math.prod(one.shard) * np.dtype(one.dtype).itemsize


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _large(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
