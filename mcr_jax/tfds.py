"""Registers the dataset with TFDS, so that TFDS finds it by name.

    import mcr_jax.tfds
    import tensorflow_datasets as tfds
    tfds.load("medcasereasoning", split="test")          # needs TensorFlow
    tfds.data_source("medcasereasoning", split="train")  # does not

`mcr build` prepares the dataset. With `data_dir=DIR` both calls also work without this import.
"""

from mcr_jax.data_builders.medcasereasoning import STITCHED, Builder

__all__ = ["STITCHED", "Builder"]
