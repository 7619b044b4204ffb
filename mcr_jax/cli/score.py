"""Computes results.json from the ledger and prints its table."""

from collections.abc import Sequence
from typing import Any

from mcr_jax.cli.stage_main import stage_main


def main(argv: Sequence[str]) -> None:
    """Runs `mcr score --config=FILE.py --workdir=DIR`."""
    if results := stage_main("score", __doc__, argv):
        show(results)


def show(results: dict[str, Any]) -> None:
    """Prints the table of `results`."""
    from rich.console import Console

    from mcr_jax.score.table import table

    Console().print(table(results))
