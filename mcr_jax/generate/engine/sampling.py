"""Drawing the next token: temperature, top-k, top-p, and a key that belongs to the sample alone.

No row of the vocabulary is sorted, and no noise is drawn for every token of it. A token is found by
inverting the distribution function in two steps, over blocks of the vocabulary and then inside one.

Dimensions: B rows, V vocabulary, N blocks of W tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 128
_FEW = 64  # blocks that are read for the few likeliest tokens
_TINY = 2.0**-23


class Options(NamedTuple):
    """Sampling options, one value per row.

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
      without temperature and filters, float32 [B]; NaN where one is NaN or +inf, or all are -inf.
    """
    B, V = logits.shape
    x = jnp.pad(logits, ((0, 0), (0, -V % _BLOCK)), constant_values=-jnp.inf)
    x = x.reshape(B, -1, _BLOCK)
    tops = x.max(axis=-1)
    best = tops.max(axis=-1)
    log_total = best + jnp.log(jnp.exp(x - best[:, None, None]).sum(axis=-1).sum(axis=-1))
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
    heat = jnp.where(greedy, 1.0, options.temperature)
    nothing = jnp.full(B, -jnp.inf)
    filters = jnp.any(options.top_k > 0)
    floor = jax.lax.cond(filters, lambda: _kth_largest(x, tops, options.top_k), lambda: nothing)

    def weights(x):
        """Weights of tokens with logits x [B, …, W], before filtering."""
        return jnp.exp((x - best[:, None, None]) / heat[:, None, None])

    def left(x, above):
        """Weights of those that top-k leaves and that are above `above` [B]."""
        return jnp.where((x >= floor[:, None, None]) & (x > above[:, None, None]), weights(x), 0.0)

    def attempt(state: _Search, blocks) -> _Search:
        """A token drawn by the weights of `blocks` [B, N], which `left` has found."""
        tries, found, ruled_out, whole, token, of_token = state
        whole = jnp.where(tries == 0, blocks.sum(axis=-1), whole)
        u = _uniform(jax.vmap(jax.random.fold_in, (0, None))(keys, tries))
        block = _first_beyond(blocks, u[:, 0])
        inside = jnp.take_along_axis(x, block[:, None, None], axis=1)
        place = _first_beyond(left(inside, ruled_out)[:, 0], u[:, 1])
        of_drawn = jnp.take_along_axis(inside[:, 0], place[:, None], axis=1)[:, 0]
        everything = (options.top_p >= 1) | ~jnp.isfinite(whole)  # no number: nothing to search for
        likelier = jax.lax.cond(
            jnp.all(everything),
            lambda: jnp.zeros(B),
            lambda: left(x, of_drawn).sum(axis=-1).sum(axis=-1),
        )
        outside = ~everything & (likelier >= options.top_p * whole) & (likelier > 0)
        return _Search(
            tries=tries + 1,
            found=found | ~outside,
            ruled_out=jnp.where(outside, of_drawn, ruled_out),
            whole=whole,
            token=jnp.where(found, token, block * _BLOCK + place).astype(jnp.int32),
            of_token=jnp.where(found, of_token, of_drawn),
        )

    def again(state: _Search) -> _Search:
        return attempt(state, left(x, state.ruled_out).sum(axis=-1))

    start = _Search(jnp.int32(0), greedy, nothing, jnp.zeros(B), *_likeliest(x, tops, best))
    blocks = weights(x).sum(axis=-1)
    filtered = jax.lax.cond(filters, lambda: left(x, nothing).sum(axis=-1), lambda: blocks)
    # A row's last bits must not follow from what other rows ask for.
    search = attempt(start, jnp.where(options.top_k[:, None] > 0, filtered, blocks))
    # Not the loop alone: XLA takes all weights out of it, and makes them if it turns or not.
    search = jax.lax.cond(
        jnp.all(search.found),
        lambda: search,
        lambda: jax.lax.while_loop(lambda s: ~jnp.all(s.found), again, search),
    )
    return search.token, search.of_token


class _Search(NamedTuple):
    """A draw under way: attempts made, and [B] what is known of every row.

    Attributes:
      tries: int32 [].
      found: bool; the token stands.
      ruled_out: float32, this logit and all below.
      whole: float32, the weight of all that top-k leaves.
      token: int32, the newest.
      of_token: float32, its logit.
    """

    tries: jax.Array
    found: jax.Array
    ruled_out: jax.Array
    whole: jax.Array
    token: jax.Array
    of_token: jax.Array


def _uniform(keys):
    """Two numbers in (0, 1), both ends left out, of each key: float32 [B, 2]."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    return ((bits >> 9).astype(jnp.float32) + 0.5) * _TINY


def _first_beyond(p, u):
    """The first place of each row of p [B, N] where the running sum exceeds u [B] of the whole.

    A place of weight zero is never taken, however the sums are rounded.
    """
    sums = jnp.cumsum(p, axis=-1)
    beyond = (sums > (u * sums[:, -1])[:, None]) & (p > 0)
    last = p.shape[-1] - 1 - jnp.argmax(p[:, ::-1] > 0, axis=-1)
    return jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last)


def _kth_largest(x, tops, k):
    """The k-th largest of each row of x [B, N, W], -inf where k [B] is 0.

    It lies in the k blocks whose largest, tops [B, N], are the largest: of a small k few are read.
    """
    if x.shape[1] <= _FEW:
        return _kth_of(x, k)

    def of_few():
        _, blocks = jax.lax.top_k(tops, _FEW)
        return _kth_of(jnp.take_along_axis(x, blocks[:, :, None], axis=1), k)

    return jax.lax.cond(jnp.all(k <= _FEW), of_few, lambda: _kth_of(x, k))


def _kth_of(x, k):
    """The k-th largest of each row of x [B, N, W], -inf where k [B] is 0: by halving, bit by bit.

    Floats sort as their bits do once negative ones are turned round.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    high, k = jnp.uint32(1 << 31), jnp.minimum(k, x[0].size)
    ordered = jnp.where(bits >= high, ~bits, bits | high)

    def decide(i, found):
        trial = found | (high >> i)
        enough = (ordered >= trial[:, None, None]).sum(axis=-1).sum(axis=-1) >= k
        return jnp.where(enough, trial, found)

    found = jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32), decide, jnp.zeros(k.shape, jnp.uint32))
    value = jnp.where(found >= high, found ^ high, ~found)
    return jnp.where(k > 0, jax.lax.bitcast_convert_type(value, jnp.float32), -jnp.inf)
