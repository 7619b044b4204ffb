"""Every device gets its rows, and TPUs are neighbours in the mesh as in the machine."""

import dataclasses

import jax
import numpy as np
import pytest

from mcr_jax.model.sharding import _by_topology, make_mesh
from mcr_jax.train.mesh import batch_sharding, put


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What jax tells of a chip of a v4 slice of 2 x 2 x 2."""

    id: int
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id & 1, self.id >> 1 & 1, self.id >> 2 & 1

    @property
    def process_index(self) -> int:
        return self.id >> 2


def chips(slices: int = 1) -> list[Tpu]:
    return [Tpu(number, piece) for piece in range(slices) for number in range(8)]


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (4, 1, 2), (1, 1, 8)])
def test_a_batch_is_laid_out_in_rows_over_data_and_fsdp(sizes):
    mesh, rng = make_mesh(*sizes), np.random.default_rng(0)
    batch = {"tokens": rng.integers(0, 9, (16, 3), np.int32), "weights": rng.random((16, 3))}
    batch["weights"] = batch["weights"].astype(np.float32)
    with jax.transfer_guard("disallow"):
        placed = put(batch, mesh)
    for name, rows in batch.items():
        assert placed[name].dtype == rows.dtype
        assert placed[name].sharding == batch_sharding(mesh)
        np.testing.assert_array_equal(placed[name], rows)
    part = 16 // (sizes[0] * sizes[1])
    for shard in placed["tokens"].addressable_shards:
        data, fsdp, _ = (int(i[0]) for i in np.nonzero(mesh.devices == shard.device))
        first = (data * sizes[1] + fsdp) * part
        np.testing.assert_array_equal(shard.data, batch["tokens"][first : first + part])


def test_cpus_keep_their_order():
    assert make_mesh(2, 2, 2).devices.ravel().tolist() == jax.devices()


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_each_tpu_has_one_place_and_the_innermost_neighbours_share_a_link(sizes):
    laid_out = _by_topology(chips(), sizes)
    assert laid_out.shape == sizes
    assert sorted(tpu.id for tpu in laid_out.ravel()) == list(range(8))
    pairs = laid_out.reshape(-1, 2)
    for one, other in pairs:
        assert sum(a != b for a, b in zip(one.coords, other.coords, strict=True)) == 1


@pytest.mark.parametrize(("sizes", "axis"), [((2, 8, 1), 0), ((4, 2, 2), 0), ((1, 16, 1), 1)])
def test_slices_are_apart_along_data_or_else_along_fsdp(sizes, axis):
    laid_out = _by_topology(chips(2), sizes)
    assert laid_out.shape == sizes
    pieces = np.vectorize(lambda tpu: tpu.slice_index)(laid_out)
    first, second = np.split(pieces, 2, axis)
    assert (first == 0).all() and (second == 1).all()


def test_slices_that_only_tensor_could_cross_are_one_line():
    with pytest.raises(ValueError, match="neither data=1 nor fsdp=1 is a multiple of the 2 slices"):
        _by_topology(chips(2), (1, 1, 16))
