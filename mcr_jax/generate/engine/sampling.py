"""Drawing the next token: temperature, top-k, top-p, and a key that belongs to the sample alone.

No row of the vocabulary is sorted, and no noise is drawn for every token of it. A token is found by
inverting the distribution function in two steps, over blocks of the vocabulary and then inside one.

Dimensions: B rows, V vocabulary, N blocks of W tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 128
_TINY = 2.0**-23


class Options(NamedTuple):
    """How to draw, row by row.

    Attributes:
      temperature: float32 [B], at least 0, which takes the likeliest token.
      top_k: int32 [B], at least 0; only the k likeliest tokens, and those as likely as the last; 0
        is all.
      top_p: float32 [B], above 0; of these, only the smallest set of likeliest tokens whose share
        reaches it (Holtzman et al., 2020), and those as likely as the last; 1 is all.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def sample_keys(seed: jax.Array, cases: jax.Array, samples: jax.Array) -> jax.Array:
    """Keys of (case, sample) pairs, whatever else is drawn.

    Args:
      seed: int scalar, the run's.
      cases: uint32 [B], numbers of the cases.
      samples: int32 [B].

    Returns:
      uint32 [B, 2], the data of threefry keys.
    """
    root = jax.random.key(seed, impl="threefry2x32")

    def of(case: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(root, case), sample))

    return jax.vmap(of)(cases, samples)


def draw(
    keys: jax.Array, position: jax.Array, logits: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row; a row's token follows from what is in the row alone.

    Args:
      keys: uint32 [B, 2], from `sample_keys`.
      position: int32 [B], the index of the token in its sample.
      logits: float32 [B, V].
      options: how.

    Returns:
      The tokens, int32 [B], and their log-probabilities (nats) under the logits as they are,
      without temperature and filters, float32 [B]; NaN where a logit is NaN or +inf.
    """
    B, V = logits.shape
    x = jnp.pad(logits, ((0, 0), (0, -V % _BLOCK)), constant_values=-jnp.inf)
    x = x.reshape(B, -1, _BLOCK)
    tops = x.max(axis=-1)
    best = tops.max(axis=-1)
    log_total = best + jnp.log(jnp.exp(x - best[:, None, None]).sum(axis=(1, 2)))
    at = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), position)
    token, of_token = jax.lax.cond(
        jnp.all(options.temperature == 0),
        lambda: _likeliest(x, tops, best),
        lambda: _drawn(at, x, tops, best, options),
    )
    return jnp.minimum(token, V - 1), of_token - log_total  # of NaN, any token


def _likeliest(x, tops, best):
    """The first of the likeliest tokens, [B], and its logit."""
    block = jnp.argmax(tops == best[:, None], axis=-1)
    inside = jnp.take_along_axis(x, block[:, None, None], axis=1)[:, 0]
    token = block * _BLOCK + jnp.argmax(inside == best[:, None], axis=-1)
    return token.astype(jnp.int32), best


def _drawn(keys, x, tops, best, options: Options):
    """Tokens drawn from the distribution that is left, [B], and their logits.

    Top-p without a search for its threshold: a token is drawn from all that top-k leaves, and drawn
    again, from the likelier ones only, until it is in the nucleus. What is drawn last then has the
    nucleus' distribution, since nothing in the nucleus is ever ruled out (rejection sampling, as in
    FlashInfer: Ye et al., 2025).
    """
    B = x.shape[0]
    greedy = options.temperature == 0
    heat = jnp.where(greedy, 1.0, options.temperature)[:, None, None]
    floor = jax.lax.cond(
        jnp.any(options.top_k > 0),
        _kth_largest,
        lambda x, k: jnp.full(B, -jnp.inf),
        x,
        options.top_k,
    )
    p = jnp.where(x >= floor[:, None, None], jnp.exp((x - best[:, None, None]) / heat), 0.0)
    whole = p.sum(axis=(1, 2))
    reached = options.top_p * whole
    everything = (options.top_p >= 1) | ~jnp.isfinite(whole)  # no number: nothing to search for

    def attempt(state):
        tries, found, ruled_out, token, of_token = state
        left = jnp.where(x > ruled_out[:, None, None], p, 0.0)
        key = jax.vmap(jax.random.fold_in, (0, None))(keys, tries)
        drawn, of_drawn = _inverted(key, left, x)
        likelier = jax.lax.cond(
            jnp.all(everything),
            lambda: jnp.zeros(B),
            lambda: jnp.where(x > of_drawn[:, None, None], p, 0.0).sum(axis=(1, 2)),
        )
        token, of_token = jnp.where(found, token, drawn), jnp.where(found, of_token, of_drawn)
        outside = ~everything & (likelier >= reached) & (likelier > 0)
        ruled_out = jnp.where(outside, of_drawn, ruled_out)
        return tries + 1, found | ~outside, ruled_out, token, of_token

    first, of_first = _likeliest(x, tops, best)
    start = jnp.int32(0), greedy, jnp.full(B, -jnp.inf), first, of_first
    *_, token, of_token = jax.lax.while_loop(lambda s: ~jnp.all(s[1]), attempt, start)
    return token, of_token


def _inverted(keys, p, x):
    """A token of each row of the weights p [B, N, W] in proportion to them, and its logit in x."""
    u = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    u = ((u >> 9).astype(jnp.float32) + 0.5) * _TINY  # in (0, 1), both ends left out
    block = _first_beyond(p.sum(axis=-1), u[:, 0])
    inside = jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0]
    place = _first_beyond(inside, u[:, 1])
    logits = jnp.take_along_axis(x, block[:, None, None], axis=1)[:, 0]
    of_token = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
    return (block * _BLOCK + place).astype(jnp.int32), of_token


def _first_beyond(p, u):
    """The first place of each row of p [B, N] where the running sum exceeds u [B] of the whole.

    A place of weight zero is never taken, however the sums are rounded.
    """
    sums = jnp.cumsum(p, axis=-1)
    beyond = (sums > (u * sums[:, -1])[:, None]) & (p > 0)
    last = p.shape[-1] - 1 - jnp.argmax(p[:, ::-1] > 0, axis=-1)
    return jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last)


def _kth_largest(x, k):
    """The k-th largest of each row of x [B, N, W], -inf where k [B] is 0: by halving, bit by bit.

    Floats sort as their bits do once negative ones are turned round.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    high, k = jnp.uint32(1 << 31), jnp.minimum(k, x[0].size)
    ordered = jnp.where(bits >= high, ~bits, bits | high)

    def decide(i, found):
        trial = found | (high >> i)
        enough = (ordered >= trial[:, None, None]).sum(axis=(1, 2)) >= k
        return jnp.where(enough, trial, found)

    found = jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32), decide, jnp.zeros(k.shape, jnp.uint32))
    value = jnp.where(found >= high, found ^ high, ~found)
    return jnp.where(k > 0, jax.lax.bitcast_convert_type(value, jnp.float32), -jnp.inf)
