"""Cross-entropy on the tokens that are trained, as a sum and a count.

Sums, not means: microbatches, hosts and packed rows of unequal length then add up exactly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

CHUNK = 64  # places of each row that the head reads at a time

Batch = dict[str, jax.Array]  # tokens, targets, positions, segment_ids: int; weights: float [B, T]


def token_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array):
    """Summed weighted cross-entropy and summed weights.

    Args:
      logits: float32 [B, T, V].
      targets: int [B, T], the token that should come next.
      weights: float32 [B, T], 1 where the target is trained, else 0.

    Returns:
      (sum of losses in nats, number of trained tokens), both float32 scalars.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights), jnp.sum(weights)


def trained_loss(
    head: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`token_loss` of head(hidden) without the logits that nothing is trained on.

    The trained places of each row are brought to its front and go through the head in chunks; a
    chunk in which no row has any left is skipped, forwards and backwards. Logits exist for one
    chunk at a time.

    Args:
      head: [..., E] -> float32 logits [..., V].
      hidden: [B, T, E].
      targets, weights: [B, T].
    """
    B, T = weights.shape
    size = min(CHUNK, T)
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -T % size)), constant_values=T)  # T: nowhere

    def chunked(x: jax.Array) -> jax.Array:
        index = order.reshape(B, -1, size, *(1 for _ in x.shape[2:]))
        x = jnp.expand_dims(x, 1)
        taken = jnp.take_along_axis(x, index, axis=2, mode="fill", fill_value=0)
        return jnp.moveaxis(taken, 1, 0)

    @jax.checkpoint
    def losses(hidden, targets, weights):
        return token_loss(head(hidden), targets, weights)

    def nothing(*_):
        return jnp.float32(0), jnp.float32(0)

    def add(sums, chunk):
        more = jax.lax.cond(jnp.any(chunk[2] != 0), losses, nothing, *chunk)
        return jax.tree.map(jnp.add, sums, more), None

    chunks = (chunked(hidden), chunked(targets), chunked(weights))
    return jax.lax.scan(add, nothing(), chunks)[0]
