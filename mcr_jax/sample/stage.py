"""The sampling stage: N completions of every case from every model of config.sample.models."""

import functools
from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.errors import McrError
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.model.model_names import TRAINED
from mcr_jax.sample import finished
from mcr_jax.sample.draw import check, require_room, sample
from mcr_jax.sigterm import stoppable


def ready(experiment: Experiment) -> None:
    """Raises UsageError if config.sample names an unknown model."""
    check(experiment.config)


def run(experiment: Experiment) -> None:
    """Samples the missing completions; loads only models with missing completions.

    Raises:
      Stopped: SIGTERM came; every completion that was finished is in the ledger.
    """
    e = experiment
    ready(e)
    left = []
    for name in e.config.sample.models:
        count = finished.complete(e, name)
        if count is None:
            left.append(name)
        else:
            console.say(f"sample: {name}: {count} completions, nothing to do")
    if left:
        _draw(e, left)


def _draw(e: Experiment, names: Sequence[str]) -> None:
    rests = functools.partial(finished.rests, e)
    with stoppable("stopped by SIGTERM; every finished completion is kept, call again to go on"):
        e.refuse_other(e.origin())
        cases = e.eval_cases()
        _require_checkpoint(e, names)
        require_room(e.workdir, e.config, cases, names)
        sampled = sample(e.workdir, e.config, e.shape, cases, e.tokenizer, e.prompt, names, rests)
    e.workdir.note("sample", {"prompt": e.prompt.digest, "seed": e.config.seed, **devices()})
    for name, drawn in sampled.items():
        done = "nothing to do"
        if drawn.summary.asked:
            rate = drawn.tokens / max(drawn.seconds, 1e-9)
            done = f"{drawn.summary.asked} drawn now, {rate:,.0f} tokens/s with compilation"
        console.say(f"sample: {name}: {drawn.summary.total} completions, {done}")


def _require_checkpoint(e: Experiment, names: Sequence[str]) -> None:
    """Raises McrError if a checkpoint is missing, before any model is sampled."""
    if TRAINED not in names:
        return
    if newest_step(e.checkpoints) is None:
        raise McrError(
            f"{e.checkpoints}: no checkpoint here, and config.sample.models names {TRAINED}: run "
            "`mcr train` first, or leave it out with --config.sample.models=base"
        )
    if e.config.sample.checkpoint == "best":
        from mcr_jax.model.store import chosen_step

        chosen_step(e.checkpoints, "best")
