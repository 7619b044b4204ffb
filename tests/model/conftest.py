"""What tests of decoders share."""

import numpy as np
import pytest
import tiny_hf
from model_folders import tensors


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
