"""Device mesh, and sharding of parameters by one short table of name rules."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# The first rule whose pattern matches the end of a parameter's dotted path applies. Axis 0 of a
# stacked parameter is the layer, which is never sharded.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"\w*norm", PartitionSpec()),
    (r"layers\.[qkv]", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"layers\.[qkv]_bias", PartitionSpec(None, "tensor", None)),
    (r"layers\.o", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"layers\.(gate|up)", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers\.down", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers\.([qkv]|gate|up)_lora_a", PartitionSpec(None, "fsdp")),  # as their weight's inputs
    (r"layers\.([qkv]|gate|up)_lora_b", PartitionSpec(None, None, "tensor")),  # and outputs
    (r"layers\.(o|down)_lora_a", PartitionSpec(None, "tensor")),
    (r"layers\.(o|down)_lora_b", PartitionSpec(None, None, "fsdp")),
    (r"embedding|head", PartitionSpec("tensor", "fsdp")),
)


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """Lays `devices` (default: all) out as (data, fsdp, tensor); one size may be -1 for the rest.

    CPUs and GPUs keep their order, by process. Neighbours among TPUs are neighbours in the mesh;
    TPU slices lie along data, or else along fsdp.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or TPU slices do not divide
        them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    tpus = devices[0].platform == "tpu" and len(devices) > 1
    laid_out = _by_topology(devices, sizes) if tpus else np.asarray(devices).reshape(sizes)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Returns the sizes of a mesh of `devices` devices, with the value of a -1 filled in.

    Raises:
      ValueError: they do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    given = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and given > 0 and devices % given == 0:
        sizes[sizes.index(-1)] = devices // given
    if min(sizes) < 1 or math.prod(sizes) != devices:
        raise ValueError(
            f"config.mesh {data} x {fsdp} x {tensor} (data, fsdp, tensor) does not fit "
            f"{devices} devices: {_misfit((data, fsdp, tensor), given, devices)}"
        )
    return tuple(sizes)


def _misfit(sizes: tuple[int, int, int], given: int, devices: int) -> str:
    """Explains why `sizes` make no mesh; `given` is the product of those that are not -1."""
    if any(size < 1 and size != -1 for size in sizes):
        return "a size is at least 1, or -1 for what the others leave"
    if sizes.count(-1) > 1:
        return "only one of config.mesh may be -1"
    names = " x ".join(name for name, size in zip(AXES, sizes, strict=True) if size != -1)
    if -1 in sizes:
        return f"{names} = {given} does not divide {devices}"
    return f"{names} = {given}; use -1 for one of them"


def one_device() -> Mesh:
    """Returns the mesh of the first device."""
    return make_mesh(1, 1, 1, jax.devices()[:1])


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Makes a NamedSharding for every leaf (arrays or ShapeDtypeStructs), by `RULES` on its path.

    A mesh axis that does not divide its dimension is left out there, so any mesh can hold any
    model. Leaves without a rule, such as the optimizer's counters, are replicated.
    """

    def of(path: Any, leaf: Any) -> NamedSharding:
        spec = _spec(jax.tree_util.keystr(path, simple=True, separator="."))
        return NamedSharding(mesh, _fitting(mesh, spec, leaf.shape))

    return jax.tree_util.tree_map_with_path(of, tree)


def abstract(tree: Any, placed: Any) -> Any:
    """Returns shapes, dtypes and shardings of a tree, without its values."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        placed,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes on one device of a tree of sharded abstract shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _by_topology(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
    """Arranges TPUs in shape `sizes`, with the slowest network between the slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = sizes
    if data % slices == 0:
        inside, between = (data // slices, fsdp, tensor), (slices, 1, 1)
    elif fsdp % slices == 0:
        inside, between = (data, fsdp // slices, tensor), (1, slices, 1)
    else:
        raise ValueError(
            f"config.mesh: neither data={data} nor fsdp={fsdp} is a multiple of the {slices} slices"
        )
    if slices == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        inside, between, devices, allow_split_physical_axes=True
    )


def _spec(name: str) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.search(rf"(^|\.)({pattern})$", name):
            return spec
    return PartitionSpec()


def _fitting(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    if len(spec) > len(shape):  # a factored optimizer state: rows or columns of the parameter
        return PartitionSpec()
    axes = (*spec, *(None,) * (len(shape) - len(spec)))[: len(shape)]
    return PartitionSpec(
        *(a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, shape, strict=True))
    )
