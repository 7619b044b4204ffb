"""Supervised fine-tuning on the train split; goes on from the newest checkpoint."""

from collections.abc import Sequence
from typing import Any

from mcr_jax import console
from mcr_jax.cli.experiment import Experiment, devices, run_stage


def main(argv: Sequence[str]) -> None:
    """`mcr train --config=FILE.py --workdir=DIR`."""
    run_stage("train", __doc__, argv, run)


def run(experiment: Experiment) -> None:
    """Trains, or says that nothing is left to train."""
    from mcr_jax.train.loop import train

    e = experiment
    made_from = _inputs(e)
    cases = {"train": e.cases("train"), "val": e.cases("val") if e.has_split("val") else ()}
    trained = train(e.workdir, e.config, e.shape, cases, e.tokenizer, e.prompt)
    e.workdir.note("train", {**made_from, "step": trained.step, **devices()})
    if trained.resumed == trained.step:
        console.say(f"train: nothing to do, the checkpoint stands at step {trained.step}")
    else:
        since = f", resumed from step {trained.resumed}" if trained.resumed else ""
        console.say(f"train: step {trained.step}{since}")


def _inputs(e: Experiment) -> dict[str, Any]:
    """What the weights follow from besides the config; a run goes on from the same only."""
    from mcr_jax.data.dataset import dataset_fingerprint

    inputs = {
        "dataset": dataset_fingerprint(e.data_dir),
        "prompt": e.prompt.digest,
        "seed": e.config.seed,
        **e.origin(),
    }
    e.workdir.note("train", {**e.refuse_other(inputs), **inputs})
    return inputs
