"""Fine-tunes on the train split; resumes from the newest checkpoint."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened


def main(argv: Sequence[str]) -> None:
    """Runs `mcr train --config=FILE.py --workdir=DIR`, the same call on all hosts of a job."""
    flags = Flags("train", __doc__)
    flags.experiment()
    flags.string(
        "plan", None, "only estimates memory and time, on devices such as '8 x v5e' or '4 x 4090'"
    )
    flags.string("profile", None, "steps to trace into WORKDIR/tb: FIRST[:COUNT]; also on SIGUSR1")
    if not flags.parse(argv):
        return
    plan, profile = flags.values["plan"].value, flags.values["profile"].value
    if plan is not None:
        from mcr_jax.plan import tables

        tables.run(flags.config(), plan)
        return
    from mcr_jax.train import hosts, stage
    from mcr_jax.train.profile import steps

    traced = range(0) if profile is None else steps(profile)
    with hosts.together():
        console.silence(not hosts.writes())
        experiment = opened(flags, writes=hosts.writes())
        with experiment.working():
            stage.run(experiment, traced)
