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
    """State of training: step counter, parameters as a nested dict, optimizer state."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, tx: optax.GradientTransformation) -> State:
    """Returns the state before the first step."""
    return State(step=jnp.int32(0), params=params, opt_state=tx.init(params))


def loss_sums(
    graph: Any,
    params: Any,
    batch: Batch,
    compute: str = "float32",
    frozen: Any = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed loss (nats) and the number of trained tokens of a batch.

    The forward pass computes in dtype `compute`; norms, softmax and the loss are in float32.
    Weights are cast where they are used. Gradients of float32 weights are therefore summed in
    float32 over tokens and devices, at twice the communication of bfloat16.

    Args:
      graph: of the decoder.
      params: the trained parameters.
      batch: tokens, targets, positions, segment_ids and weights, each [rows, row_tokens].
      compute: a dtype.
      frozen: the decoder's other parameters; None if all are trained.
      dropout_key: for the adapters' dropout masks; None disables dropout.
    """
    model = nnx.merge(graph, params, frozen or {})
    hidden, _ = model.hidden(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        dropout_key=dropout_key,
        compute=compute,
    )
    return trained_loss(model.unembedding(), hidden, batch["targets"], batch["weights"])


def train_step(
    graph: Any,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulate: int = 1,
    compute: str = "float32",
    seed: int = 0,
) -> Callable[..., tuple[State, Metrics]]:
    """Returns the step (state, batch, frozen=None), to be jitted with its first argument donated.

    `frozen` are parameters of the decoder that are not in the state. Metrics are float32 scalars:
    loss (nats per trained token), gradient norm, learning rate, trained tokens.

    Args:
      graph: of the decoder.
      tx, schedule: from `optimizer`.
      accumulate: gradient accumulation steps. The gradient is that of the mean over all trained
        tokens of the batch, summed in float32.
      compute: dtype of the weights in the forward pass.
      seed: of the adapters' dropout masks and of stochastic rounding; folded with the step.
    """

    def step(state: State, batch: Batch, frozen: Any = None) -> tuple[State, Metrics]:
        tokens = jnp.sum(batch["weights"])
        dropout_key, rounding_key = jax.random.split(
            jax.random.fold_in(jax.random.key(seed), state.step)
        )

        def share(params: Any, part: Batch, key: jax.Array) -> jax.Array:
            """Returns the contribution of a microbatch to the mean loss of the batch."""
            total, _ = loss_sums(graph, params, part, compute, frozen, key)
            return total / jnp.maximum(tokens, 1)

        def add(sums: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(share)(state.params, *xs)), None

        if accumulate == 1:
            loss, grads = jax.value_and_grad(share)(state.params, batch, dropout_key)
        else:
            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
            xs = microbatches(batch, accumulate), jax.random.split(dropout_key, accumulate)
            (loss, grads), _ = jax.lax.scan(add, (jnp.float32(0), zeros), xs)
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads)),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "trained_tokens": tokens,
        }
        params = _moved(state.params, updates, rounding_key)
        return State(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def _moved(params: Any, updates: Any, key: jax.Array) -> Any:
    """Returns params + updates, with stochastic rounding in bfloat16 (Gupta et al., 2015).

    Most updates are smaller than half of bfloat16's spacing: rounding to nearest would lose them.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def moved(p: jax.Array, u: jax.Array, key: jax.Array) -> jax.Array:
        if p.dtype != jnp.bfloat16:
            return (p + u).astype(p.dtype)
        exact = jax.lax.bitcast_convert_type(p.astype(jnp.float32) + u, jnp.uint32)
        noise = jax.random.bits(key, p.shape, jnp.uint16).astype(jnp.uint32)
        # The upper half of a float32 is a bfloat16; rounding removes the lower half.
        rounded = ((exact + noise) >> 16).astype(jnp.uint16)
        return jax.lax.bitcast_convert_type(rounded, jnp.bfloat16)

    return tree.unflatten(map(moved, leaves, jax.tree.leaves(updates), keys))


def microbatches(batch: Batch, count: int) -> Batch:
    """Cuts [rows, ...] into [count, rows / count, ...], each with rows of every device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
