"""Parses every reply again and recomputes results.json, offline; lists differences.

Without the dataset it uses the stored verdicts on reasons, and says so.
"""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened
from mcr_jax.errors import McrError
from mcr_jax.experiment.experiment import Experiment


def main(argv: Sequence[str]) -> None:
    """Runs `mcr verify --workdir=DIR`; exit status 1 if a number or a verdict differs."""
    flags = Flags("verify", __doc__)
    flags.experiment()
    if flags.parse(argv):
        run(opened(flags))


def run(experiment: Experiment) -> None:
    """Prints each number or verdict that differs. Raises McrError if there are any."""
    from mcr_jax.data.dataset import MissingDatasetError
    from mcr_jax.score.verify import verify

    e, missing, cases = experiment, "", ()
    try:
        cases = e.cases(e.config.data.eval_split)
    except MissingDatasetError as error:
        missing = str(error)
    found = verify(e.workdir, e.config, cases)
    for line in found.differences:
        console.say(line)
    if found.unchecked:
        why = missing or f"their cases are not in split {e.config.data.eval_split} of the dataset"
        console.say(
            f"verify: {found.unchecked} verdicts on reasons are used as stored, their replies not "
            f"parsed again: {why}"
        )
    if found.differences:
        raise McrError(f"{len(found.differences)} values differ from the ledger")
    console.say(
        f"verify: {e.workdir.results} agrees with the ledger, and {found.verdicts} verdicts with "
        "their replies"
    )
