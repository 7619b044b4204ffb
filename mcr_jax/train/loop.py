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
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.loader import Batch, Batches, fixed_batches
from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.data.tokens import Tokens, fit, tokenize
from mcr_jax.errors import McrError, Stopped
from mcr_jax.model.config import DecoderConfig
from mcr_jax.prompts import Prompt
from mcr_jax.train import hosts
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.faults import Watch
from mcr_jax.train.mesh import put
from mcr_jax.train.meter import Meter
from mcr_jax.train.metrics import MetricsLog
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
      early: whether it ended because the validation loss no longer fell.
      dropped: (case fingerprint, tokens) of examples that no row holds whole.
      rates: of `Meter.rates`, when steps were made.
    """

    step: int
    resumed: int
    early: bool = False
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

    Raises:
      Stopped: SIGTERM came; the step under way then is saved.
      McrError: no example fits a row, the loss diverges, or nothing can be written.
      UsageError: config.mesh does not fit the devices.
    """
    c, log = config.train, None
    meter = Meter(shape)
    checkpoints = Checkpoints(c.checkpoints or workdir.checkpoints, c.keep, c.keep_best)
    try:
        latest = checkpoints.latest or 0
        if not c.epochs and latest >= c.steps:
            return Trained(step=latest, resumed=latest)
        data = _data(workdir, config, shape, cases, tokenizer, prompt)
        tb = workdir.path / "tb"
        log = MetricsLog(workdir.metrics, tb) if workdir.writes else MetricsLog(None)
        early = bool(hosts.agreed(_stale(log.history("val_loss", latest), c.patience)))
        if latest >= data.steps or early:
            return Trained(step=latest, resumed=latest, early=early, dropped=data.dropped)
        trainer = Trainer(config, shape, data.steps)
        found, resumed = checkpoints.restore_newest(trainer.like())
        state, frozen = trainer.init() if found is None else found, trainer.frozen()
        log.go_on(resumed)
        profiler = Profiler(tb, profile)
        run = _Run(config, data, trainer, checkpoints, log, meter, Watch(workdir, shape.vocab_size))
        # Kernels that XLA cannot partition ask for the mesh.
        with jax.set_mesh(trainer.mesh), profiler.listening():
            step, early = run.run(state, frozen, resumed, profiler)
    finally:
        checkpoints.close()
        if log is not None:
            log.close()
    done = {"step": step, "resumed": resumed, "early": early, "dropped": data.dropped}
    return Trained(**done, rates=meter.rates())


def _data(
    workdir: Workdir,
    config: ConfigDict,
    shape: DecoderConfig,
    cases: Mapping[str, Sequence[Case]],
    tokenizer: Tokenizer,
    prompt: Prompt,
) -> _Data:
    """Tokenizes and packs, or finds that done; says how it fits."""
    c, folder = config.train, workdir.path / "tokens"

    def tokens(split: str) -> Tokens:
        made = tokenize(cases[split], prompt, tokenizer, folder)
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
    validation = []
    if cases["val"]:
        held_out = fit(tokens("val"), fitted.row_tokens, "drop")
        validation = fixed_batches(held_out.tokens, c.rows, fitted.row_tokens)
    return _Data(batches=batches, validation=validation, dropped=fitted.dropped, steps=steps)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The loop and what it works with."""

    config: ConfigDict
    data: _Data
    trainer: Trainer
    checkpoints: Checkpoints
    log: MetricsLog
    meter: Meter
    watch: Watch

    def run(self, state: State, frozen: Any, done: int, profiler: Profiler) -> tuple[int, bool]:
        """Steps from `done` on; returns the last step and whether it came early."""
        c, steps, mesh = self.config.train, self.data.steps, self.trainer.mesh
        losses = self.log.history("val_loss", done)
        under_way: list[tuple[int, Metrics, Batch]] = []  # read when the next one is, too
        saved = done or None
        with (
            contextlib.closing(self.data.batches.read(done, steps)) as reading,
            console.track("train", steps, done) as progress,
            hosts.listening() as stop,
        ):
            progress.update(done, "compiling")
            for number in range(done + 1, steps + 1):
                with self.meter.waiting():
                    batch = next(reading)
                profiler.before(number)
                state, metrics = self.trainer.step(state, put(batch, mesh), frozen)
                self._record(under_way, progress, saved)
                under_way.append((number, metrics, batch))
                last, stopping = number == steps, stop(number)
                val_loss, best, early = None, False, False
                with self.meter.apart():
                    if self.data.validation and (number % c.eval_every == 0 or last):
                        self._record(under_way, progress, saved)
                        val_loss = self.trainer.validate(state.params, frozen, self.data.validation)
                        self.log.write(number, val_loss=val_loss)
                        # One process has the history of a resumed run, and speaks for all.
                        best = bool(hosts.agreed(val_loss < min(losses, default=math.inf)))
                        losses.append(val_loss)
                        early = bool(hosts.agreed(_stale(losses, c.patience)))
                    due = number % c.checkpoint_every == 0
                    if due or (best and c.keep_best) or last or stopping or early:
                        self._record(under_way, progress, saved)  # a checkpoint vouches for it
                        self.checkpoints.save(number, state, val_loss)
                        saved = number
                if (stopping and not last) or early:
                    break
        self.checkpoints.wait()
        if stopping and not last and not early:
            raise Stopped(f"stopped by SIGTERM; step {number} is saved, call again to go on")
        return number, early

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


def _stale(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` losses were no better than the best one before them."""
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])
