"""Compiled step, validation and initial state of a training run, sharded over its mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mcr_jax import config as configs
from mcr_jax.data.loader import Batch
from mcr_jax.errors import UsageError
from mcr_jax.model import lora
from mcr_jax.model.abstract import abstract_decoder, parts
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, shardings
from mcr_jax.model.store import starting_params
from mcr_jax.train.mesh import batch_sharding, put, training_mesh
from mcr_jax.train.optimizer import OPTIMIZERS, SCHEDULES, optimizer
from mcr_jax.train.step import Metrics, State, init_state, loss_sums, microbatches, train_step


class Trainer:
    """Functions on the state of a run; holds no state.

    With LoRA the state holds the adapters, and the decoder's other weights are `frozen`; otherwise
    the state holds all weights and `frozen` is empty.

    Attributes:
      mesh: over all devices of all processes.
      step: compiled (state, batch, frozen) -> (state, metrics); the given state is donated.
    """

    def __init__(self, config: ConfigDict, shape: DecoderConfig, steps: int):
        """Allocates no array. Raises UsageError as `training_mesh` and `configured`."""
        c = config.train
        self.mesh = training_mesh(**config.mesh, rows=c.rows, accumulate=c.accumulate)
        tx, schedule = configured(config.optim, steps)
        graph, params = abstract_decoder(shape)
        trained, frozen = parts(params) if shape.lora else (params, {})
        self._shape, self._seed = shape, config.seed
        self._shapes = jax.eval_shape(lambda params: init_state(params, tx), trained)
        self._placed = shardings(self.mesh, self._shapes)
        rows, fixed = batch_sharding(self.mesh), shardings(self.mesh, frozen)
        self._with_optimizer = jax.jit(
            lambda params: init_state(params, tx), donate_argnums=0, out_shardings=self._placed
        )
        self.step: Callable[[State, Any, Any], tuple[State, Metrics]] = jax.jit(
            train_step(
                graph, tx, schedule, accumulate=c.accumulate, compute=c.compute, seed=config.seed
            ),
            donate_argnums=0,
            in_shardings=(self._placed, rows, fixed),
            out_shardings=(self._placed, None),
        )

        def sums(params: Any, batch: Any, frozen: Any) -> tuple[jax.Array, jax.Array]:
            def of_part(part: Any) -> tuple[jax.Array, jax.Array]:
                return loss_sums(graph, params, part, c.compute, frozen)

            # In microbatches like a step, so that validation needs no more memory than training.
            losses, tokens = jax.lax.map(of_part, microbatches(batch, c.accumulate))
            return losses.sum(), tokens.sum()

        self._sums = jax.jit(sums, in_shardings=(self._placed.params, rows, fixed))

    def frozen(self) -> Any:
        """Loads the frozen weights. Raises McrError if they cannot be read."""
        if self._shape.lora is None:
            return {}
        return starting_params(self._shape, self._seed, self.mesh)

    def init(self) -> State:
        """Makes the state before the first step. Raises McrError if weights cannot be read."""
        make = lora.initial if self._shape.lora else starting_params
        return self._with_optimizer(make(self._shape, self._seed, self.mesh))

    def like(self) -> State:
        """Returns the abstract shapes of the state, with shardings."""
        return abstract(self._shapes, self._placed)

    def validate(self, params: Any, frozen: Any, batches: Sequence[Batch]) -> float:
        """Returns the loss in nats per trained token over all batches."""
        sums = [self._sums(params, put(batch, self.mesh), frozen) for batch in batches]
        losses, tokens = zip(*sums, strict=True)
        return float(sum(losses)) / float(sum(tokens))


def configured(
    config: ConfigDict, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns `optimizer` of a section config.optim.

    Raises:
      UsageError: the optimizer or schedule is unknown, or a field that the optimizer does not use
        differs from its default.
    """
    for field, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
        if config[field] not in known:
            raise UsageError(
                f"config field optim.{field} is one of {', '.join(known)}, not {config[field]!r}"
            )
    default, fields = configs.default().optim, OPTIMIZERS[config.name].fields
    unused = {f for entry in OPTIMIZERS.values() for f in entry.fields} - {*fields}
    changed = sorted(f for f in unused if config[f] != default[f])
    if changed:
        names = ", ".join(f"config.optim.{f}={config[f]}" for f in changed)
        raise UsageError(f"{names}: optimizer {config.name} does not use it; leave the default")
    return optimizer(steps=steps, **config)
