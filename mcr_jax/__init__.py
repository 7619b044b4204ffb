"""mcr-jax: build, fine-tune, sample and judge MedCaseReasoning in JAX.

Research use, not for patient care. Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
