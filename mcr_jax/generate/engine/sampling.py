"""Drawing the next token: temperature, nucleus, and a key that belongs to the sample alone."""

import jax
import jax.numpy as jnp

_BISECTIONS = 40  # halves [0, max p] until float32 has nothing between the ends


def sample_keys(seed: int, cases: jax.Array, samples: jax.Array) -> jax.Array:
    """Keys of (case, sample) pairs, whatever else is in the batch.

    Args:
      seed: the run's seed.
      cases: uint32 [P], drawn from the case fingerprints.
      samples: int32 [P, N], sample indices.

    Returns:
      Typed threefry keys [P, N].
    """
    root = jax.random.key(seed, impl="threefry2x32")
    of_case = jax.vmap(jax.random.fold_in, (None, 0))(root, cases)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(of_case, samples)


def draw(keys: jax.Array, position: jax.Array, logits: jax.Array, temperature, top_p) -> jax.Array:
    """Samples one token per row by Gumbel-max; temperature 0 is greedy.

    Args:
      keys: [P, N] from `sample_keys`.
      position: int scalar, index of the token being drawn; folded into every key.
      logits: float32 [P, N, V].
      temperature: float32 [P].
      top_p: float32 [P]; the smallest set of likeliest tokens whose mass reaches it is kept.

    Returns:
      int32 [P, N].
    """
    greedy = (temperature == 0)[:, None, None]
    scaled = logits / jnp.where(temperature == 0, 1.0, temperature)[:, None, None]
    scaled = jax.lax.cond(jnp.any(top_p < 1), nucleus, lambda x, p: x, scaled, top_p)
    at = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, position)
    vocab = logits.shape[-1]
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (vocab,))))(at)
    return jnp.argmax(jnp.where(greedy, logits, scaled + noise), axis=-1).astype(jnp.int32)


def nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Sets all but the nucleus (Holtzman et al., 2020) to -inf, without sorting the vocabulary.

    The probability that just lets the kept mass reach `top_p` is found by bisection. Tokens as
    likely as the last one kept are kept too.

    Args:
      logits: float32 [P, N, V].
      top_p: float32 [P].

    Returns:
      float32 [P, N, V].
    """
    p = jax.nn.softmax(logits, axis=-1)
    target = jnp.minimum(top_p, 1.0)[:, None]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(p >= middle[..., None], p, 0), axis=-1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = (jnp.zeros(p.shape[:-1]), jnp.max(p, axis=-1))
    top = start[1]
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    whole = jnp.sum(jnp.where(p >= top[..., None], p, 0), axis=-1) >= target
    threshold = jnp.where(whole, top, low)
    keep = (p >= threshold[..., None]) | (top_p >= 1)[:, None, None]
    return jnp.where(keep, logits, -jnp.inf)
