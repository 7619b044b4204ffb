"""The training stage: supervised fine-tuning on the train split, from the newest checkpoint on."""

from typing import Any

from mcr_jax import config as configs
from mcr_jax import console
from mcr_jax.data.dataset import dataset_fingerprint
from mcr_jax.data.traces import digest
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.model.flops import CONVENTION
from mcr_jax.train import hosts
from mcr_jax.train.loop import train
from mcr_jax.train.trainer import configured

# Facts that checkpoints of older versions lack, with the value that they stand for.
ADDED = {"traces": "", "optim.name": "adamw"}


def run(experiment: Experiment, profile: range = range(0)) -> None:
    """Trains, or says that nothing is left to train; traces the steps of `profile`."""
    e = experiment
    configured(e.config.optim, 1)  # raises before data is read
    inputs = _inputs(e)
    cases = {"train": e.cases("train"), "val": e.cases("val") if e.has_split("val") else ()}
    identity = configs.identity(e.config) | inputs
    identity = {n: value for n, value in identity.items() if ADDED.get(n) != value}
    trained = train(
        *(e.workdir, e.config, e.shape, cases, e.tokenizer, e.prompt),
        profile=profile,
        run=identity,
        traces=e.traces,
    )
    ended = ", where the validation loss no longer fell" if trained.early else ""
    if trained.resumed == trained.step:
        console.say(f"train: nothing to do, the checkpoint stands at step {trained.step}{ended}")
        return
    done = {"step": trained.step, "dropped": [name for name, _ in trained.dropped]}
    e.workdir.note("train", {**inputs, **done, **devices()})
    since = f", resumed from step {trained.resumed}" if trained.resumed else ""
    console.say(f"train: step {trained.step}{since}{ended}")
    if trained.best:
        console.say(f"  lowest val loss {trained.best[1]:.4f}, after step {trained.best[0]}")
    if trained.rates:
        console.say(f"  {_told(trained.rates)}")


def _told(rates: dict[str, float]) -> str:
    told = [f"{rates['tokens_per_second']:,.0f} tokens/s"]
    if "mfu" in rates:
        told.append(f"MFU {rates['mfu']:.3f} ({CONVENTION})")
    told.append(f"goodput {rates['goodput']:.2f}")
    return ", ".join([*told, f"waited for data {rates['data_wait']:.1%}"])


def _inputs(e: Experiment) -> dict[str, Any]:
    """What the weights follow from besides the config; a run goes on from the same only."""
    inputs = {
        "dataset": dataset_fingerprint(e.data_dir),
        "prompt": e.prompt.digest,
        "seed": e.config.seed,
        **e.origin(),
        "traces": "" if e.traces is None else digest(e.traces),
    }
    hosts.same({name: str(value) for name, value in inputs.items()})
    e.workdir.note("train", {**e.refuse_other(inputs), **inputs})
    return inputs
