"""Training mesh, and sharding of batches: rows over the data and fsdp axes."""

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mcr_jax.errors import UsageError
from mcr_jax.model.sharding import make_mesh
from mcr_jax.train.loss import ROWS


def training_mesh(data: int, fsdp: int, tensor: int, rows: int, accumulate: int = 1) -> Mesh:
    """Returns the mesh of config.mesh over all devices.

    Raises:
      UsageError: it does not fit the devices, or as `rows_of_part`.
    """
    try:
        mesh = make_mesh(data, fsdp, tensor)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows_of_part(mesh, rows, accumulate)
    return mesh


def rows_of_part(mesh: Mesh | AbstractMesh, rows: int, accumulate: int) -> int:
    """Returns the rows per device of a microbatch, of which a batch has `accumulate`.

    Raises:
      UsageError: `rows` cannot be split evenly.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (shards * accumulate):
        parts, lower = f"data x fsdp = {shards}", ""
        if accumulate > 1:
            parts = f"data x fsdp x train.accumulate = {shards} x {accumulate}"
            lower = ", config.train.accumulate lower"
        raise UsageError(
            f"config.train.rows={rows} is not a multiple of {parts}; set config.train.rows to a "
            f"multiple of {shards * accumulate}{lower}, or config.mesh.tensor higher"
        )
    return rows // (shards * accumulate)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards rows over the data and fsdp axes; replicates them over the tensor axis."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the mesh. Every process has all rows and places those of its devices."""
    placed = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_callback(rows.shape, placed, rows.__getitem__)
            for name, rows in batch.items()
        }
