"""Runs `mcr` as `python -m mcr_jax`."""

from mcr_jax.cli.main import entry

entry()
