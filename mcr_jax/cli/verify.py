"""Recomputes every number of results.json from the ledger, offline, and lists what differs."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import McrError


def main(argv: Sequence[str]) -> None:
    """`mcr verify --workdir=DIR`; exit status 1 if a number differs."""
    flags = Flags("verify", __doc__)
    flags.experiment()
    if not flags.parse(argv):
        return
    from mcr_jax.score.run import verify

    experiment = Experiment.open(flags)
    lines = verify(experiment.workdir, experiment.config)
    for line in lines:
        console.say(line)
    if lines:
        raise McrError(f"{len(lines)} values differ from what the ledger gives")
    console.say(f"verify: {experiment.workdir.results} agrees with the ledger")
