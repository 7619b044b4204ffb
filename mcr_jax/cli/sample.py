"""Samples N completions per case from every model of the config, into the ledger."""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main


def main(argv: Sequence[str]) -> None:
    """Runs `mcr sample --config=FILE.py --workdir=DIR`."""
    stage_main("sample", __doc__, argv)
