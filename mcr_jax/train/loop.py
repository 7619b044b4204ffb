"""Supervised fine-tuning: cases in, checkpoints and metrics out; resumes where it was killed.

The batch of a step is a pure function of (data, seed, step) and a checkpoint holds all the rest, so
a run that was killed ends with the same bits as one that was not. Several processes run the same
loop side by side; one of them writes what is written once.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.loader import Batch, Batches, fixed_batches
from mcr_jax.data.tokens import Tokens, fit, tokenize
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model.attention import BackendError
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.prompts import Prompt
from mcr_jax.text.tokenizer import Tokenizer
from mcr_jax.train import hosts
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.faults import Watch
from mcr_jax.train.mesh import put, training_mesh
from mcr_jax.train.meter import Meter
from mcr_jax.train.metrics_log import MetricsLog
from mcr_jax.train.profile import Profiler
from mcr_jax.train.step import Metrics, State
from mcr_jax.train.trainer import Trainer
from mcr_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run of training did.

    Attributes:
      step: where the newest checkpoint stands.
      resumed: the step this call went on from; equal to `step` when nothing was left to do.
      early: whether it ended before its last step because the validation loss no longer fell.
      best: (step, validation loss) of the lowest that was measured; None where none was.
      dropped: (case fingerprint, tokens) of examples that no row holds whole.
      rates: of `Meter.rates`, when steps were made.
    """

    step: int
    resumed: int
    early: bool = False
    best: tuple[int, float] | None = None
    dropped: Sequence[tuple[str, int]] = ()
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    batches: Batches
    validation: Sequence[Batch]
    dropped: Sequence[tuple[str, int]]
    steps: int


def train(
    workdir: Workdir,
    config: ConfigDict,
    shape: DecoderConfig,
    cases: Mapping[str, Sequence[Case]],
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    profile: range = range(0),
    run: Mapping[str, Any] | None = None,
    traces: Mapping[str, str] | None = None,
) -> Trained:
    """Trains to config.train.steps or epochs, from the newest checkpoint if there is one.

    Args:
      workdir: gets checkpoints/, metrics.jsonl, tb/ and tokens/.
      config: sections lora, optim, mesh, train and the seed are read.
      shape: of the decoder; with `lora` its adapters alone are trained.
      cases: the splits "train" and "val"; an empty "val" means no validation loss.
      tokenizer: made the ids the model knows.
      prompt: the question each case is put in.
      profile: steps to trace.
      run: what tells this run from others whose checkpoints may be in the same place.
      traces: what is learned in place of a case's statements, by its fingerprint; None for these.

    Raises:
      Stopped: SIGTERM came; the step under way then is saved.
      McrError: no example fits a row, the loss diverges, or nothing can be written.
      UsageError: config.mesh does not fit the devices, the device cannot do config.attention, or
        the checkpoints are of another run.
    """
    c, meter = config.train, Meter(shape)
    training_mesh(**config.mesh, rows=c.rows, accumulate=c.accumulate)  # refused before long work
    checkpoints = Checkpoints(c.checkpoints or workdir.checkpoints, c.keep, c.keep_best, run)
    log = MetricsLog(workdir.metrics, workdir.tensorboard) if workdir.writes else MetricsLog(None)
    try:
        latest = checkpoints.latest or 0
        if not c.epochs and latest >= c.steps:
            return Trained(step=latest, resumed=latest)
        data = _data(workdir, config, shape, cases, tokenizer, prompt, traces)
        losses = checkpoints.history(latest) if latest else []
        if latest >= data.steps or _stale(losses, c.patience):
            early = latest < data.steps
            return Trained(step=latest, resumed=latest, early=early, dropped=data.dropped)
        trainer = Trainer(config, shape, data.steps)
        saves = math.ceil((data.steps - latest) / c.checkpoint_every)
        checkpoints.require_room(trainer.like(), saves)
        found, resumed = checkpoints.restore_newest(trainer.like())
        state, frozen = trainer.init() if found is None else found, trainer.frozen()
        losses = checkpoints.history(resumed) if resumed else []
        log.go_on(resumed)
        profiler, watch = Profiler(workdir.tensorboard, profile), Watch(workdir, shape.vocab_size)
        loop = _Loop(config, data, trainer, checkpoints, log, meter, watch, losses)
        # Kernels that XLA cannot partition ask for the mesh.
        with jax.set_mesh(trainer.mesh), profiler.listening():
            step, early = loop.run(state, frozen, resumed, profiler)
    except BackendError as error:
        raise UsageError(f"config.attention: {error}") from error
    finally:
        checkpoints.close()
        log.close()
    best = min(losses, key=lambda measured: measured[1], default=None)
    done = {"step": step, "resumed": resumed, "early": early, "best": best}
    return Trained(**done, dropped=data.dropped, rates=meter.rates())


def _data(
    workdir: Workdir,
    config: ConfigDict,
    shape: DecoderConfig,
    cases: Mapping[str, Sequence[Case]],
    tokenizer: Tokenizer,
    prompt: Prompt,
    traces: Mapping[str, str] | None,
) -> _Data:
    """Tokenizes and packs, or finds that done; says how it fits."""
    c, folder = config.train, workdir.tokens

    def tokens(split: str) -> Tokens:
        made = tokenize(cases[split], prompt, tokenizer, folder, traces)
        if made.highest >= shape.vocab_size:
            raise McrError(
                f"the tokenizer gives id {made.highest}, and the model has {shape.vocab_size} ids"
            )
        return made

    fitted = fit(tokens("train"), c.row_tokens, c.too_long)
    batches = Batches(fitted.tokens, c.rows, fitted.row_tokens, config.seed, folder)
    steps = batches.steps(c.epochs) if c.epochs else c.steps
    console.say(
        f"  {len(fitted.tokens)} examples, {batches.filled:.3f} of the places in rows of "
        f"{fitted.row_tokens} filled, {batches.epoch(steps):.1f} epochs in {steps} steps"
    )
    if fitted.dropped:
        longest = max(length for _, length in fitted.dropped)
        console.say(
            f"  {len(fitted.dropped)} longer than train.row_tokens={c.row_tokens} are left out, "
            f"the longest of {longest} tokens; train.too_long=keep keeps them"
        )
    validation = _validation(tokens("val"), c.rows, fitted.row_tokens) if cases["val"] else []
    if not validation and (asked := [n for n in ("keep_best", "patience") if c[n]]):
        names = " and ".join(f"config.train.{name}={c[name]}" for name in asked)
        raise UsageError(
            f"{names} need a validation loss, and there is no val case that a row holds: set 0, "
            "and config.sample.checkpoint to newest"
        )
    return _Data(batches=batches, validation=validation, dropped=fitted.dropped, steps=steps)


def _validation(held_out: Tokens, rows: int, row_tokens: int) -> list[Batch]:
    """Batches of those examples that a row holds; says how many it does not."""
    fits = held_out.lengths <= row_tokens
    if not fits.all():
        console.say(
            f"  {(~fits).sum()} of {len(held_out)} val cases are longer than a row of {row_tokens} "
            "tokens and do not count in the validation loss"
        )
    if not fits.any():
        return []
    return fixed_batches(held_out.select(np.flatnonzero(fits)), rows, row_tokens)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The loop and what it works with; `losses` are (step, validation loss), in order."""

    config: ConfigDict
    data: _Data
    trainer: Trainer
    checkpoints: Checkpoints
    log: MetricsLog
    meter: Meter
    watch: Watch
    losses: list[tuple[int, float]]

    def run(self, state: State, frozen: Any, done: int, profiler: Profiler) -> tuple[int, bool]:
        """Steps from `done` on; returns the last step and whether it came early."""
        c, steps, mesh = self.config.train, self.data.steps, self.trainer.mesh
        under_way: list[tuple[int, Metrics, Batch]] = []  # read when the next one is, too
        saved = done or None
        with (
            contextlib.closing(self.data.batches.read(done, steps)) as reading,
            console.track("train", steps, done) as progress,
            hosts.listening() as stop,
        ):
            progress.update(done, "compiling")
            if self._measures(done) and done not in dict(self.losses):  # it was stopped right there
                self._measure(done, state.params, frozen)
                if _stale(self.losses, c.patience):
                    return done, True
            for number in range(done + 1, steps + 1):
                with self.meter.waiting():
                    batch = next(reading)
                profiler.before(number)
                state, metrics = self.trainer.step(state, put(batch, mesh), frozen)
                self._record(under_way, progress, saved)
                under_way.append((number, metrics, batch))
                last = number == steps
                stopping = stop(number) and not last
                with self.meter.apart():
                    val_loss, best, early = None, False, False
                    # Who wants it to stop waits for the checkpoint only.
                    if (self._measures(number) or (last and self.data.validation)) and not stopping:
                        self._record(under_way, progress, saved)
                        val_loss, best = self._measure(number, state.params, frozen)
                        early = not last and _stale(self.losses, c.patience)
                    due = number % c.checkpoint_every == 0 or (best and c.keep_best)
                    if due or last or stopping or early:
                        self._record(under_way, progress, saved)  # a checkpoint vouches for it
                        self.checkpoints.save(number, state, val_loss, self.losses)
                        saved = number
                if stopping or early:
                    break
            self.checkpoints.wait()
        if stopping:
            raise Stopped(f"stopped by SIGTERM; step {number} is saved, call again to go on")
        return number, early

    def _measures(self, step: int) -> bool:
        """Whether a validation loss belongs to `step`."""
        return bool(self.data.validation and step and step % self.config.train.eval_every == 0)

    def _measure(self, step: int, params: Any, frozen: Any) -> tuple[float, bool]:
        """The validation loss after `step`, and whether it is the lowest so far."""
        val_loss = self.trainer.validate(params, frozen, self.data.validation)
        self.watch.check_validation(step, val_loss)
        lowest = min((loss for _, loss in self.losses), default=math.inf)
        self.log.write(step, val_loss=val_loss)
        self.losses.append((step, val_loss))
        word = ", the lowest so far" if val_loss < lowest else ""
        console.say(f"  val loss {val_loss:.4f} after step {step}{word}")
        return val_loss, val_loss < lowest

    def _record(
        self,
        under_way: list[tuple[int, Metrics, Batch]],
        progress: console.Track,
        saved: int | None,
    ) -> None:
        """Waits for the steps under way, looks at their metrics and writes them."""
        while under_way:
            number, metrics, batch = under_way.pop()
            values = {name: float(value) for name, value in metrics.items()}
            timing = self.meter.step(batch["segment_ids"], int(values["trained_tokens"]))
            cases = functools.partial(self.data.batches.fingerprints, number - 1)
            self.watch.check(number, values, cases, saved)
            epoch = self.data.batches.epoch(number)
            self.log.write(number, **values, epoch=round(epoch, 4), **timing)
            progress.update(number, _note(values["loss"], epoch, timing))


def _note(loss: float, epoch: float, timing: Mapping[str, float]) -> str:
    """What stands beside the progress bar."""
    told = [f"loss {loss:.3f}", f"epoch {epoch:.2f}"]
    if "tokens_per_second" in timing:
        told.append(f"{timing['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in timing:
        told.append(f"MFU {timing['mfu']:.2f}")
    return ", ".join(told)


def _stale(losses: Sequence[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` losses were no better than the best one before them."""
    values = [loss for _, loss in losses]
    return 0 < patience < len(values) and min(values[-patience:]) >= min(values[:-patience])
