"""Writes report.html: one self-contained page with the numbers, the plots and every case."""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main


def main(argv: Sequence[str]) -> None:
    """Runs `mcr report --config=FILE.py --workdir=DIR`."""
    stage_main("report", __doc__, argv)
