"""Judges the completions: is the diagnosis right, and which of the clinician's reasons are found.

--config.judge.name=gemini asks Gemini (set GEMINI_API_KEY); offline decides by fixed rules. Every
call asks again for the verdicts that are missing; the exit status is 1 while more of them are than
config.judge.unresolved_limit allows.
"""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main
from mcr_jax.errors import McrError


def main(argv: Sequence[str]) -> None:
    """`mcr judge --config=FILE.py --workdir=DIR`."""
    judged = stage_main("judge", __doc__, argv)
    if judged and judged.problem:
        raise McrError(judged.problem)
