"""Fixtures that tests of decoders share."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_hf
from flax import nnx
from model_folders import tensors

from mcr_jax.model.abstract import abstract_decoder, initial_params


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a variant."""

    def make(variant="llama3", dtype=np.float32, name="model", **changes):
        made = tensors(variant, dtype)
        for tensor, value in changes.pop("tensors", {}).items():
            made.pop(tensor, None)
            if value is not None:
                made[tensor] = value
        return tiny_hf.write(tmp_path / name, {**tiny_hf.VARIANTS[variant], **changes}, made)

    return make


@pytest.fixture(scope="module")
def plain(tiny_shape):
    """A decoder with every part that a family may have."""
    every = dataclasses.replace(tiny_shape, qk_norm=True, qkv_bias=True, sandwich_norm=True)
    return nnx.merge(abstract_decoder(every)[0], jax.jit(lambda: initial_params(every, 0))())
