"""The training stage: supervised fine-tuning on the train split, from the newest checkpoint on."""

from collections.abc import Mapping
from typing import Any

from mcr_jax import config as configs
from mcr_jax import console
from mcr_jax.data.dataset import dataset_fingerprint
from mcr_jax.data.traces import digest
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.model.flops import CONVENTION
from mcr_jax.train import hosts
from mcr_jax.train.loop import Trained, train
from mcr_jax.train.trainer import configured
from mcr_jax.train.training_data import Inputs

# Facts that checkpoints of older versions do not name, with the value they were trained with.
IMPLIED_BY_OLDER_RUNS = {"traces": "", "optim.name": "adamw"}


def run(experiment: Experiment, profile: range = range(0)) -> None:
    """Trains unless the run is complete; notes the run in the manifest and prints a summary.

    Args:
      experiment: its dataset was built.
      profile: steps to trace.
    """
    e = experiment
    configured(e.config.optim, 1)  # raises before data is read
    origin = _origin(e)
    e.workdir.note("train", {**e.refuse_other(origin), **origin})
    identity = configs.identity(e.config) | origin
    identity = {n: v for n, v in identity.items() if IMPLIED_BY_OLDER_RUNS.get(n) != v}
    cases = {"train": e.cases("train"), "val": e.cases("val") if e.has_split("val") else ()}
    inputs = Inputs(
        shape=e.shape, cases=cases, tokenizer=e.tokenizer, prompt=e.prompt, traces=e.traces
    )
    trained = train(e.workdir, e.config, inputs, identity, profile)
    if trained.step > trained.resumed:
        dropped = [fingerprint for fingerprint, _ in trained.dropped]
        e.workdir.note("train", {**origin, "step": trained.step, "dropped": dropped, **devices()})
    _print(trained)


def _origin(e: Experiment) -> dict[str, Any]:
    """Everything besides the config that the weights depend on, the same on all processes."""
    origin = {
        "dataset": dataset_fingerprint(e.data_dir),
        "prompt": e.prompt.digest,
        "seed": e.config.seed,
        **e.origin(),
        "traces": "" if e.traces is None else digest(e.traces),
    }
    hosts.same({name: str(value) for name, value in origin.items()})
    return origin


def _print(trained: Trained) -> None:
    ended = ", where the validation loss no longer fell" if trained.early else ""
    if trained.resumed == trained.step:
        console.say(f"train: nothing to do, the checkpoint stands at step {trained.step}{ended}")
        return
    since = f", resumed from step {trained.resumed}" if trained.resumed else ""
    console.say(f"train: step {trained.step}{since}{ended}")
    if trained.best:
        console.say(f"  lowest val loss {trained.best[1]:.4f}, after step {trained.best[0]}")
    if trained.rates:
        console.say(f"  {_rates(trained.rates)}")


def _rates(rates: Mapping[str, float]) -> str:
    parts = [f"{rates['tokens_per_second']:,.0f} tokens/s"]
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.3f} ({CONVENTION})")
    parts.append(f"goodput {rates['goodput']:.2f}")
    return ", ".join([*parts, f"waited for data {rates['data_wait']:.1%}"])
