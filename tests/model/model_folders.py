"""Tensors of the tiny models' folders, read and compared without this project."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_hf

from mcr_jax.errors import McrError

SHAPES = json.loads((tiny_hf.GOLDEN / "shapes.json").read_text())
BFLOAT16 = ml_dtypes.bfloat16


def tensors(variant: str, dtype=np.float32) -> dict[str, np.ndarray]:
    return {k: v.astype(dtype) for k, v in tiny_hf.weights(variant, SHAPES[variant]).items()}


def in_files(folder) -> dict[str, np.ndarray]:
    """Reads every tensor of a folder without this project."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def refusal(act) -> str:
    with pytest.raises(McrError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)
