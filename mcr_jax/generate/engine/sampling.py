"""Sampling of the next token with temperature, top-k and top-p, by a key of each sample alone.

Neither sorts the vocabulary nor draws noise for each of its tokens: a token is found by inverting
the distribution function in two steps, over blocks of the vocabulary and then within one block.

Dimensions: B rows, V vocabulary, N blocks of W tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 128  # tokens
_TOP_K_BLOCKS = 64  # blocks to read for a top-k of at most as many tokens
_EPSILON = 2.0**-23


class Options(NamedTuple):
    """Sampling options, one value per row.

    Attributes:
      temperature: float32 [B], at least 0; 0 is greedy.
      top_k: int32 [B], at least 0; keeps the k most likely tokens and ties of the last; 0 disables
        top-k.
      top_p: float32 [B], above 0; of these keeps the smallest set of most likely tokens whose
        share reaches `top_p` (Holtzman et al., 2020), and ties of the last; 1 disables top-p.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def sample_keys(seed: jax.Array, cases: jax.Array, samples: jax.Array) -> jax.Array:
    """Derives random keys of (case, sample) pairs, independent of all other samples.

    Args:
      seed: int scalar, seed of the run.
      cases: uint32 [B], numbers of the cases.
      samples: int32 [B], indices of the samples.

    Returns:
      uint32 [B, 2], the data of threefry keys.
    """
    root = jax.random.key(seed, impl="threefry2x32")

    def key(case: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(root, case), sample))

    return jax.vmap(key)(cases, samples)


def draw(
    keys: jax.Array, position: jax.Array, logits: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row; the token depends on its own row alone.

    Args:
      keys: uint32 [B, 2], from `sample_keys`.
      position: int32 [B], index of the token in its sample.
      logits: float32 [B, V].
      options: sampling options of each row.

    Returns:
      The tokens, int32 [B], and their log-probabilities (nats) without temperature and filters,
      float32 [B]; NaN if a logit of the row is NaN or +inf, or all are -inf.
    """
    B, V = logits.shape
    x = jnp.pad(logits, ((0, 0), (0, -V % _BLOCK)), constant_values=-jnp.inf)
    x = x.reshape(B, -1, _BLOCK)
    tops = x.max(axis=-1)
    best = tops.max(axis=-1)
    log_total = best + jnp.log(jnp.exp(x - best[:, None, None]).sum(axis=-1).sum(axis=-1))
    token_keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), position)
    token, logit = jax.lax.cond(
        jnp.all(options.temperature == 0),
        lambda: _greedy(x, tops, best),
        lambda: _sampled(token_keys, x, tops, best, options),
    )
    return jnp.minimum(token, V - 1), logit - log_total  # with NaN, the token is arbitrary


def _greedy(x, tops, best):
    """Returns the first of the most likely tokens, [B], and its logit."""
    block = jnp.argmax(tops == best[:, None], axis=-1)
    inside = jnp.take_along_axis(x, block[:, None, None], axis=1)[:, 0]
    token = block * _BLOCK + jnp.argmax(inside == best[:, None], axis=-1)
    return token.astype(jnp.int32), best


def _sampled(keys, x, tops, best, options: Options):
    """Draws tokens from the filtered distribution, [B], and returns their logits, too.

    Top-p needs no search for its threshold: a token is drawn from all that top-k keeps, then again
    from more likely tokens only, until it is in the nucleus. The last token has the distribution of
    the nucleus, since no token of the nucleus is ever excluded (rejection sampling as in
    FlashInfer: Ye et al., 2025).
    """
    B = x.shape[0]
    greedy = options.temperature == 0
    temperature = jnp.where(greedy, 1.0, options.temperature)
    nothing = jnp.full(B, -jnp.inf)
    filters = jnp.any(options.top_k > 0)
    floor = jax.lax.cond(filters, lambda: _kth_largest(x, tops, options.top_k), lambda: nothing)

    def weights(x):
        """Weights of tokens with logits x [B, …, W], before filtering."""
        return jnp.exp((x - best[:, None, None]) / temperature[:, None, None])

    def kept(x, above):
        """Weights of the tokens that top-k keeps and whose logits exceed `above` [B]."""
        return jnp.where((x >= floor[:, None, None]) & (x > above[:, None, None]), weights(x), 0.0)

    def attempt(state: _Search, blocks) -> _Search:
        """Draws a token by the sums of `kept` over each block, `blocks` [B, N]."""
        tries, found, excluded, total, token, logit = state
        total = jnp.where(tries == 0, blocks.sum(axis=-1), total)
        u = _uniform(jax.vmap(jax.random.fold_in, (0, None))(keys, tries))
        block = _first_beyond(blocks, u[:, 0])
        inside = jnp.take_along_axis(x, block[:, None, None], axis=1)
        place = _first_beyond(kept(inside, excluded)[:, 0], u[:, 1])
        new_logit = jnp.take_along_axis(inside[:, 0], place[:, None], axis=1)[:, 0]
        unfiltered = (options.top_p >= 1) | ~jnp.isfinite(total)  # with NaN, the token is arbitrary
        likelier = jax.lax.cond(
            jnp.all(unfiltered),
            lambda: jnp.zeros(B),
            lambda: kept(x, new_logit).sum(axis=-1).sum(axis=-1),
        )
        outside = ~unfiltered & (likelier >= options.top_p * total) & (likelier > 0)
        return _Search(
            tries=tries + 1,
            found=found | ~outside,
            excluded=jnp.where(outside, new_logit, excluded),
            total=total,
            token=jnp.where(found, token, block * _BLOCK + place).astype(jnp.int32),
            logit=jnp.where(found, logit, new_logit),
        )

    def retry(state: _Search) -> _Search:
        return attempt(state, kept(x, state.excluded).sum(axis=-1))

    start = _Search(jnp.int32(0), greedy, nothing, jnp.zeros(B), *_greedy(x, tops, best))
    blocks = weights(x).sum(axis=-1)
    filtered = jax.lax.cond(filters, lambda: kept(x, nothing).sum(axis=-1), lambda: blocks)
    # The last bits of a row must not depend on the options of other rows.
    search = attempt(start, jnp.where(options.top_k[:, None] > 0, filtered, blocks))
    # A cond around the loop: XLA hoists the weights out of the loop and would always compute them.
    search = jax.lax.cond(
        jnp.all(search.found),
        lambda: search,
        lambda: jax.lax.while_loop(lambda s: ~jnp.all(s.found), retry, search),
    )
    return search.token, search.logit


class _Search(NamedTuple):
    """State of the search for a token in each row [B].

    Attributes:
      tries: int32 [], number of attempts.
      found: bool, True if the token is final.
      excluded: float32; tokens with this logit or a lower one are excluded.
      total: float32, weight of all tokens that top-k keeps.
      token: int32, newest token.
      logit: float32, its logit.
    """

    tries: jax.Array
    found: jax.Array
    excluded: jax.Array
    total: jax.Array
    token: jax.Array
    logit: jax.Array


def _uniform(keys):
    """Draws two numbers of the open interval (0, 1) for each key: float32 [B, 2]."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    return ((bits >> 9).astype(jnp.float32) + 0.5) * _EPSILON


def _first_beyond(p, u):
    """Returns the first place of each row of p [B, N] whose running sum exceeds u [B] of the total.

    It is never a place of weight zero, however the sums are rounded.
    """
    sums = jnp.cumsum(p, axis=-1)
    beyond = (sums > (u * sums[:, -1])[:, None]) & (p > 0)
    last = p.shape[-1] - 1 - jnp.argmax(p[:, ::-1] > 0, axis=-1)
    return jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last)


def _kth_largest(x, tops, k):
    """Returns the k-th largest value of each row of x [B, N, W], -inf where k [B] is 0.

    It is in one of the k blocks with the largest maxima, tops [B, N]: a small k reads few blocks.
    """
    if x.shape[1] <= _TOP_K_BLOCKS:
        return _kth_of(x, k)

    def of_top_blocks():
        _, blocks = jax.lax.top_k(tops, _TOP_K_BLOCKS)
        return _kth_of(jnp.take_along_axis(x, blocks[:, :, None], axis=1), k)

    return jax.lax.cond(jnp.all(k <= _TOP_K_BLOCKS), of_top_blocks, lambda: _kth_of(x, k))


def _kth_of(x, k):
    """Computes `_kth_largest` by bisection, bit by bit.

    Floats sort as their bits do, after the bits of negative floats are inverted.
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
