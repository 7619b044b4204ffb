"""Registers the dataset with TFDS: `import mcr_jax.tfds`, and its name works as those of TFDS do.

    import mcr_jax.tfds
    import tensorflow_datasets as tfds
    tfds.load("medcasereasoning", split="test")          # needs TensorFlow
    tfds.data_source("medcasereasoning", split="train")  # does not

`mcr build` prepares it. Where it is not prepared, the error says so. With `data_dir=DIR` both calls
work without this import, too.
"""

from mcr_jax.data_builders.medcasereasoning import STITCHED, Builder

__all__ = ["STITCHED", "Builder"]
