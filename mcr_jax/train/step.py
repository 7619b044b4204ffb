"""One optimizer step, (state, batch) to (state, metrics): a pure function, jitted and sharded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mcr_jax.train.loss import Batch, trained_loss

Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """What training carries: step counter, parameters as a nested dict, optimizer state."""

    step: jax.Array
    params: Any
    opt_state: Any


def optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float,
    clip_norm: float,
    b1: float,
    b2: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW under global-norm clipping, linear warm-up, cosine decay to a tenth over `steps`.

    Norm scales are not decayed. Returns the transformation and its learning-rate schedule.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=min(warmup_steps, max(steps - 1, 0)),
        decay_steps=steps,
        end_value=0.1 * learning_rate,
    )

    def decayed(params: Any) -> Any:
        def is_matrix(path: Any, _: Any) -> bool:
            return not jax.tree_util.keystr(path, simple=True, separator=".").endswith("norm")

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    adamw = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), schedule


def init_state(params: Any, tx: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(step=jnp.int32(0), params=params, opt_state=tx.init(params))


def loss_sums(graph: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Summed loss (nats) and number of trained tokens of a batch, [rows, row_tokens] throughout."""
    model = nnx.merge(graph, params)
    hidden, _ = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    return trained_loss(model.logits, hidden, batch["targets"], batch["weights"])


def train_step(
    graph: Any, tx: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Returns the step function, to be jitted with its first argument donated.

    Metrics are float32 scalars: loss (nats per trained token), gradient norm, learning rate,
    trained tokens.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
            total, tokens = loss_sums(graph, params, batch)
            return total / jnp.maximum(tokens, 1), tokens

        (loss, tokens), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "trained_tokens": tokens,
        }
        params = optax.apply_updates(state.params, updates)
        return State(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step
