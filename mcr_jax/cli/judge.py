"""Judges the completions: correctness of the diagnosis and recall of the clinician's reasons.

--config.judge.name=gemini uses Gemini (set GEMINI_API_KEY); offline applies fixed rules;
--config.judge.models=A,B takes several judges, and --config.judge.repeat=N repeats their verdicts.
Every call requests missing verdicts again. The exit status is 1 if the share of missing verdicts
exceeds config.judge.unresolved_limit.
"""

from collections.abc import Sequence

from mcr_jax.cli.stage_main import stage_main
from mcr_jax.errors import McrError


def main(argv: Sequence[str]) -> None:
    """Runs `mcr judge --config=FILE.py --workdir=DIR`."""
    judged = stage_main("judge", __doc__, argv)
    if judged and judged.problem:
        raise McrError(judged.problem)
