"""The training loop: inputs to checkpoints and metrics, resumed from the newest checkpoint.

A batch is a pure function of (data, seed, step) and a checkpoint holds all other state, so a run
that was killed and resumed ends with the same bits as an unbroken one. In a multi-host run every
process executes this loop and only process 0 writes metrics.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.data.loader import Batch
from mcr_jax.errors import Stopped, UsageError
from mcr_jax.model.attention import BackendError
from mcr_jax.train import hosts
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.faults import Watch
from mcr_jax.train.mesh import put, training_mesh
from mcr_jax.train.meter import Meter
from mcr_jax.train.metrics_log import MetricsLog
from mcr_jax.train.profile import Profiler
from mcr_jax.train.step import Metrics
from mcr_jax.train.trainer import Trainer
from mcr_jax.train.training_data import Inputs, prepare
from mcr_jax.train.val_losses import ValLosses
from mcr_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of one call of `train`.

    Attributes:
      step: of the newest checkpoint.
      resumed: step of the checkpoint that this call started from; equal to `step` if nothing was
        left to do.
      early: whether early stopping ended the run before its last step.
      best: (step, loss) of the lowest validation loss; None without one.
      dropped: (case fingerprint, tokens) of examples longer than a row.
      rates: `Meter.rates`, if steps were made.
    """

    step: int
    resumed: int
    early: bool = False
    best: tuple[int, float] | None = None
    dropped: Sequence[tuple[str, int]] = ()
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)


def train(
    workdir: Workdir,
    config: ConfigDict,
    inputs: Inputs,
    identity: Mapping[str, Any] | None = None,
    profile: range = range(0),
) -> Trained:
    """Trains to config.train.steps or epochs, from the newest checkpoint if there is one.

    Args:
      workdir: receives checkpoints/, metrics.jsonl, tb/ and tokens/.
      config: sections lora, optim, mesh, train and the seed are read.
      inputs: decoder shape and data.
      identity: facts that distinguish this run; checkpoints with other facts are refused.
      profile: steps to trace.

    Raises:
      Stopped: SIGTERM was received; the step in flight is saved.
      McrError: no example fits a row, the loss diverges, or a file cannot be written.
      UsageError: config.mesh does not fit the devices, the device does not support
        config.attention, or the checkpoints are of another run.
    """
    c, meter = config.train, Meter(inputs.shape)
    training_mesh(**config.mesh, rows=c.rows, accumulate=c.accumulate)  # fails before long work
    checkpoints = Checkpoints(c.checkpoints or workdir.checkpoints, c.keep, c.keep_best, identity)
    log = MetricsLog(workdir.metrics, workdir.tensorboard) if workdir.writes else MetricsLog(None)
    with contextlib.closing(checkpoints), contextlib.closing(log), _attention_errors():
        latest = checkpoints.latest or 0
        if not c.epochs and latest >= c.steps:
            return Trained(step=latest, resumed=latest)

        # Data.
        data = prepare(config, inputs, workdir.tokens)
        stale = ValLosses(checkpoints.history(latest), c.patience).stale
        if latest >= data.steps or stale:
            early = latest < data.steps
            return Trained(step=latest, resumed=latest, early=early, dropped=data.dropped)

        # Compiled step, and the state: restored, or initial.
        trainer = Trainer(config, inputs.shape, data.steps)
        saves = math.ceil((data.steps - latest) / c.checkpoint_every)
        checkpoints.require_room(trainer.like(), saves)
        state, resumed = checkpoints.restore_newest(trainer.like())
        state, frozen = trainer.init() if state is None else state, trainer.frozen()
        losses = ValLosses(checkpoints.history(resumed), c.patience)
        log.go_on(resumed)

        # The loop. The host reads a step's metrics after it has dispatched the next step, so
        # devices never wait.
        watch = Watch(workdir, inputs.shape.vocab_size)
        profiler = Profiler(workdir.tensorboard, profile)
        in_flight: list[tuple[int, Metrics, Batch]] = []
        saved = resumed or None
        step, stopping = resumed, False

        def read_in_flight() -> None:
            """Waits for the dispatched step; checks, logs and shows its metrics."""
            while in_flight:
                number, metrics, batch = in_flight.pop()
                values = {name: float(value) for name, value in metrics.items()}
                timing = meter.step(batch["segment_ids"], int(values["trained_tokens"]))
                cases = functools.partial(data.batches.fingerprints, number - 1)
                watch.check(number, values, cases, saved)
                epoch = data.batches.epoch(number)
                log.write(number, **values, epoch=round(epoch, 4), **timing)
                progress.update(number, _note(values["loss"], epoch, timing))

        def validate() -> tuple[float, bool]:
            """Returns the validation loss after `step`, and whether it is the lowest so far."""
            loss = trainer.validate(state.params, frozen, data.validation)
            watch.check_validation(step, loss)
            log.write(step, val_loss=loss)
            lowest = losses.add(step, loss)
            word = ", the lowest so far" if lowest else ""
            console.say(f"  val loss {loss:.4f} after step {step}{word}")
            return loss, lowest

        with (
            jax.set_mesh(trainer.mesh),  # for kernels that XLA cannot partition
            profiler.listening(),
            contextlib.closing(data.batches.read(resumed, data.steps)) as batches,
            console.track("train", data.steps, resumed) as progress,
            hosts.listening() as sigterm,
        ):
            progress.update(resumed, "compiling")
            # If SIGTERM came at a validation step, its checkpoint has no validation loss yet.
            early, due = False, bool(data.validation and step) and step % c.eval_every == 0
            if due and step not in losses:
                validate()
                early = losses.stale

            while step < data.steps and not (early or stopping):
                # Dispatch.
                step += 1
                with meter.waiting():
                    batch = next(batches)
                profiler.before(step)
                state, metrics = trainer.step(state, put(batch, trainer.mesh), frozen)
                read_in_flight()
                in_flight.append((step, metrics, batch))
                last = step == data.steps
                stopping = sigterm(step) and not last

                with meter.apart():
                    # Validation, and early stopping; after SIGTERM there is time to save only.
                    val_loss, lowest = None, False
                    due = bool(data.validation) and (last or step % c.eval_every == 0)
                    if due and not stopping:
                        read_in_flight()
                        val_loss, lowest = validate()
                        early = losses.stale and not last

                    # Checkpoint, after the check of the step's own metrics.
                    due = step % c.checkpoint_every == 0 or (lowest and c.keep_best)
                    if due or last or stopping or early:
                        read_in_flight()
                        checkpoints.save(step, state, val_loss, losses.history)
                        saved = step
            checkpoints.wait()

    # Result.
    if stopping:
        raise Stopped(f"stopped by SIGTERM; step {step} is saved, call again to go on")
    done = {"step": step, "resumed": resumed, "early": early, "best": losses.best}
    return Trained(**done, dropped=data.dropped, rates=meter.rates())


@contextlib.contextmanager
def _attention_errors() -> Iterator[None]:
    """Raises UsageError in place of the BackendError of a step that is being compiled."""
    try:
        yield
    except BackendError as error:
        raise UsageError(f"config.attention: {error}") from error


def _note(loss: float, epoch: float, timing: Mapping[str, float]) -> str:
    """Text beside the progress bar."""
    parts = [f"loss {loss:.3f}", f"epoch {epoch:.2f}"]
    if "tokens_per_second" in timing:
        parts.append(f"{timing['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in timing:
        parts.append(f"MFU {timing['mfu']:.2f}")
    return ", ".join(parts)
