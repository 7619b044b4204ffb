"""`python -m mcr_jax` is `mcr`."""

from mcr_jax.cli.main import entry

entry()
