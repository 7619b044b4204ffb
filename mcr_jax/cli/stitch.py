"""Rewrites the statements of each case as one fluent trace, for config.train.traces=stitched.

--config.stitch.model names the writer: base (default) is the model to be fine-tuned; sft its newest
checkpoint, whose traces are for another workdir (copy traces.parquet there); gemini is Gemini (set
GEMINI_API_KEY). Every trace is audited. --config.stitch.judge=gemini also judges whether traces
keep the meaning of the statements.
"""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main


def main(argv: Sequence[str]) -> None:
    """Runs `mcr stitch --config=FILE.py --workdir=DIR`."""
    stage_main("stitch", __doc__, argv)
