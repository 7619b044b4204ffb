"""Supervised fine-tuning: cases in, checkpoints and metrics.jsonl out; resumes where it was killed.

The batch of a step is a pure function of (data, seed, step) and a checkpoint holds all the rest, so
a run that was killed ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.example import examples
from mcr_jax.data.loader import Batch, Batches, fixed_batches
from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.errors import McrError, Stopped
from mcr_jax.model.blueprint import blueprint
from mcr_jax.model.config import DecoderConfig
from mcr_jax.model.sharding import abstract, shardings
from mcr_jax.model.store import starting_params
from mcr_jax.prompts import Prompt
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.mesh import batch_sharding, put, training_mesh
from mcr_jax.train.metrics import MetricsLog
from mcr_jax.train.step import Metrics, State, init_state, loss_sums, optimizer, train_step
from mcr_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run of training did.

    Attributes:
      step: where the newest checkpoint stands.
      resumed: the step this call went on from; equal to `step` when nothing was left to do.
      too_long: examples left out because no row holds them whole.
    """

    step: int
    resumed: int
    too_long: int = 0


class Trainer:
    """The compiled parts of a run and how its state lies on the mesh."""

    def __init__(self, config: ConfigDict, shape: DecoderConfig):
        """Allocates nothing. Raises UsageError if config.mesh cannot be."""
        c = config.train
        self.mesh = training_mesh(**config.mesh, rows=c.rows, accumulate=c.accumulate)
        tx, schedule = optimizer(steps=config.train.steps, **config.optim)
        graph, params = blueprint(shape)
        self._shape, self._seed = shape, config.seed
        self._shapes = jax.eval_shape(lambda params: init_state(params, tx), params)
        self._placed = shardings(self.mesh, self._shapes)
        rows = batch_sharding(self.mesh)
        self._with_optimizer = jax.jit(
            lambda params: init_state(params, tx), donate_argnums=0, out_shardings=self._placed
        )
        self.step: Callable[[State, Any], tuple[State, Metrics]] = jax.jit(
            train_step(graph, tx, schedule, accumulate=c.accumulate, compute=c.compute),
            donate_argnums=0,
            in_shardings=(self._placed, rows),
            out_shardings=(self._placed, None),
        )
        self._sums = jax.jit(
            lambda params, batch: loss_sums(graph, params, batch, c.compute),
            in_shardings=(self._placed.params, rows),
        )

    def init(self) -> State:
        """The state before the first step. Raises McrError if weights cannot be read."""
        return self._with_optimizer(starting_params(self._shape, self._seed, self.mesh))

    def like(self) -> State:
        """The state's shapes, dtypes and shardings, without values: what restoring needs."""
        return abstract(self._shapes, self._placed)

    def validate(self, params: Any, batches: Sequence[Batch]) -> float:
        """Loss in nats per trained token over all batches."""
        sums = [self._sums(params, put(batch, self.mesh)) for batch in batches]
        losses, tokens = zip(*sums, strict=True)
        return float(sum(losses)) / float(sum(tokens))


def train(
    workdir: Workdir,
    config: ConfigDict,
    shape: DecoderConfig,
    cases: Mapping[str, Sequence[Case]],
    tokenizer: Tokenizer,
    prompt: Prompt,
) -> Trained:
    """Trains to config.train.steps, from the newest checkpoint if there is one.

    Args:
      workdir: gets checkpoints/ and metrics.jsonl.
      config: sections optim, mesh, train and the seed are read.
      shape: of the decoder.
      cases: the splits "train" and "val"; an empty "val" means no validation loss.
      tokenizer: made the ids the model knows.
      prompt: the question each case is put in.

    Raises:
      Stopped: SIGTERM came; the step under way then is saved.
      McrError: no example fits a row, the loss is not finite, or nothing can be written.
      UsageError: config.mesh does not fit the devices.
    """
    checkpoints = Checkpoints(workdir.checkpoints, config.train.keep)
    try:
        latest = checkpoints.latest or 0
        if latest >= config.train.steps:
            return Trained(step=latest, resumed=latest)
        rows, row_tokens = config.train.rows, config.train.row_tokens
        fitting, too_long = examples(cases["train"], prompt, tokenizer, row_tokens)
        if too_long:
            console.say(f"  {too_long} cases are longer than train.row_tokens and are left out")
        highest = max(int(e.ids.max()) for e in fitting)
        if highest >= shape.vocab_size:
            raise McrError(
                f"the tokenizer gives id {highest}, and the model has {shape.vocab_size} ids"
            )
        batches = Batches(fitting, rows, row_tokens, config.seed)
        validation = []
        if cases["val"]:
            held_out, _ = examples(cases["val"], prompt, tokenizer, row_tokens)
            validation = fixed_batches(held_out, rows, row_tokens)
        trainer = Trainer(config, shape)
        found, resumed = checkpoints.restore_newest(trainer.like())
        state = trainer.init() if found is None else found
        log = MetricsLog(workdir.metrics, resumed)
        with jax.set_mesh(trainer.mesh):  # kernels that XLA cannot partition ask for it
            _run(trainer, config, state, resumed, batches, validation, checkpoints, log)
    finally:
        checkpoints.close()
    return Trained(step=config.train.steps, resumed=resumed, too_long=too_long)


def _run(
    trainer: Trainer,
    config: ConfigDict,
    state: State,
    done: int,
    batches: Batches,
    validation: Sequence[Batch],
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> None:
    steps, started = config.train.steps, time.monotonic()
    pending: list[tuple[int, Metrics, float]] = []  # read only when the next step is under way
    with console.track("train", steps, done) as progress, _listening() as asked_to_stop:

        def record() -> None:
            while pending:
                number, metrics, seconds = pending.pop()
                values = {name: float(value) for name, value in metrics.items()}
                for name in ("loss", "gradient_norm"):  # the gradient reaches the next weights
                    if not np.isfinite(values[name]):
                        raise McrError(
                            f"the {name} at step {number} is {values[name]}; nothing after the "
                            "last checkpoint is kept; try a lower optim.learning_rate"
                        )
                epoch = batches.epoch(number)
                log.write(number, **values, epoch=round(epoch, 4), seconds=round(seconds, 3))
                progress.update(number, f"loss {values['loss']:.3f}, epoch {epoch:.1f}")

        for number in range(done + 1, steps + 1):
            state, metrics = trainer.step(state, put(batches[number - 1], trainer.mesh))
            record()
            pending.append((number, metrics, time.monotonic() - started))
            last, stopping = number == steps, asked_to_stop()
            if validation and (number % config.train.eval_every == 0 or last):
                record()
                log.write(number, val_loss=trainer.validate(state.params, validation))
            if number % config.train.checkpoint_every == 0 or last or stopping:
                record()  # a checkpoint vouches for the metrics up to it
                checkpoints.save(number, state)
            if stopping and not last:
                checkpoints.wait()
                raise Stopped(f"stopped by SIGTERM; step {number} is saved, call again to go on")
    checkpoints.wait()


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGTERM has come, instead of dying of it."""
    if threading.current_thread() is not threading.main_thread():  # which alone can listen
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
