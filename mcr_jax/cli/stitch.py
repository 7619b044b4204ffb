"""Statements to one fluent trace per case, which config.train.traces=stitched trains on.

--config.stitch.model=base, the default, has the model write that is about to be fine-tuned; sft its
newest checkpoint, whose traces are for another workdir (copy traces.parquet there), and gemini asks
Gemini (set GEMINI_API_KEY). Every trace is audited; with --config.stitch.judge=gemini Gemini judges
whether it keeps the meaning of the statements.
"""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main


def main(argv: Sequence[str]) -> None:
    """`mcr stitch --config=FILE.py --workdir=DIR`."""
    stage_main("stitch", __doc__, argv)
