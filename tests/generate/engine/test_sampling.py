"""Tokens are drawn from exactly the filtered distribution, by a key of each sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mcr_jax.generate.engine.sampling import Options, draw, sample_keys

LOGITS = np.array([1.3, 0.2, -0.7, 2.0, 0.9, -1.0], np.float32)
DRAWS = 6000
drawn = jax.jit(draw)
keyed = jax.jit(sample_keys)


def options(rows, temperature=1.0, top_k=0, top_p=1.0):
    full = jnp.full(rows, 0)
    return Options(
        (full + temperature).astype(jnp.float32), full + top_k, (full + top_p).astype(jnp.float32)
    )


def tokens_of(logits, *, position=0, case=7, seed=0, draws=DRAWS, **how):
    """Draws one token, with its log-probability, of each of many samples of a case."""
    keys = keyed(seed, jnp.full(draws, case, jnp.uint32), jnp.arange(draws))
    wide = jnp.broadcast_to(logits, (draws, len(logits)))
    tokens, logprobs = drawn(keys, jnp.full(draws, position), wide, options(draws, **how))
    return np.asarray(tokens), np.asarray(logprobs)


def softmax(x):
    p = np.exp(x.astype(np.float64) - x.max())
    return p / p.sum()


def left(logits, top_k: int, top_p: float) -> np.ndarray:
    """Returns by sorting which tokens are kept: the k most likely, then the nucleus of these.

    Ties of the last kept token are kept, too.
    """
    p = softmax(logits)
    if top_k:
        p = np.where(p >= np.sort(p)[::-1][min(top_k, len(p)) - 1], p, 0)
        p /= p.sum()
    order = np.argsort(-p, kind="stable")
    count = min(int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1, len(p))
    return (p >= p[order[count - 1]]) & (p > 0)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        *((t, 0, 1.0) for t in (0.5, 0.7, 1.0, 1.8)),
        (1.0, 0, 0.8),
        (1.0, 3, 1.0),
        (1.4, 4, 0.8),
        (0.7, 0, 0.3),
    ],
)
@pytest.mark.parametrize("vocabulary", [6, 300])  # in one block, and in several
def test_frequencies_are_the_filtered_renormalized_ones(vocabulary, temperature, top_k, top_p):
    logits = LOGITS if vocabulary == 6 else np.random.default_rng(0).normal(0, 2, vocabulary)
    logits = np.asarray(logits, np.float32)
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokens, logprobs = tokens_of(logits, **how)
    inside = left(logits / temperature, top_k, top_p)
    counts = np.bincount(tokens, minlength=vocabulary)
    assert not counts[~inside].any()
    expected = np.where(inside, softmax(logits / temperature), 0)
    expected *= DRAWS / expected.sum()
    rare = expected < 5  # pooled, as the test of chi-squared needs
    groups = [counts[~rare], expected[~rare]]
    if expected[rare].sum() > 0:
        groups = [
            np.append(g, x[rare].sum()) for g, x in zip(groups, (counts, expected), strict=True)
        ]
    if len(groups[0]) > 1:
        assert stats.chisquare(*groups).pvalue > 1e-3
    np.testing.assert_allclose(logprobs, np.log(softmax(logits))[tokens], atol=2e-6)


@pytest.mark.parametrize("vocabulary", [6, 128, 300])
def test_temperature_zero_takes_the_first_of_the_likeliest(vocabulary):
    logits = np.zeros(vocabulary, np.float32)
    logits[[4, vocabulary - 1]] = 2.0
    for how in ({}, {"top_p": 0.5}, {"top_k": 2}):
        tokens, logprobs = tokens_of(logits, temperature=0.0, draws=9, **how)
        assert set(tokens) == {4}
        np.testing.assert_allclose(logprobs, np.log(softmax(logits))[4], atol=1e-6)


@pytest.mark.parametrize(
    "other", [{"position": 1}, {"case": 8}, {"seed": 1}], ids=lambda other: next(iter(other))
)
def test_another_position_case_or_seed_draws_independently(other):
    one, two = tokens_of(LOGITS)[0], tokens_of(LOGITS, **other)[0]
    by_chance = (softmax(LOGITS) ** 2).sum()
    spread = np.sqrt(by_chance * (1 - by_chance) / DRAWS)
    assert abs((one == two).mean() - by_chance) < 4 * spread


def test_samples_of_a_case_are_independent():
    tokens = tokens_of(LOGITS)[0]
    by_chance = (softmax(LOGITS) ** 2).sum()
    spread = np.sqrt(by_chance * (1 - by_chance) / DRAWS)
    assert abs((tokens[1:] == tokens[:-1]).mean() - by_chance) < 5 * spread


def test_a_key_belongs_to_its_case_and_sample_alone():
    cases, samples = np.array([5, 5, 2**32 - 1, 2**32 - 1], np.uint32), np.array([0, 1, 3, 0])
    keys = np.asarray(keyed(3, cases, samples))
    turned = np.asarray(keyed(3, cases[::-1].copy(), samples[::-1].copy()))
    np.testing.assert_array_equal(keys, turned[::-1])
    assert len({tuple(key) for key in keys.tolist()}) == 4


sixteenths = st.integers(-128, 128).map(lambda n: n / 16)  # logits are equal or clearly apart


@settings(max_examples=200)
@given(
    st.lists(sixteenths, min_size=140, max_size=140),
    st.integers(0, 400),
    st.floats(0.01, 0.999),
    st.integers(0, 1000),
)
def test_no_token_is_drawn_that_sorting_would_leave_out(logits, top_k, top_p, case):
    logits = np.array(logits, np.float32)
    tokens, _ = tokens_of(logits, draws=20, case=case, top_k=top_k, top_p=top_p)
    assert left(logits, top_k, top_p + 1e-5)[tokens].all()  # float32 sums decide within the slack


@pytest.mark.parametrize("top_k", [1, 20, 64, 65, 8999])
def test_the_likeliest_of_a_large_vocabulary_are_found(top_k):
    logits = np.random.default_rng(top_k).integers(-160, 160, 9000).astype(np.float32) / 16
    tokens, _ = tokens_of(logits, top_k=top_k, temperature=9.0, draws=400)
    inside = left(logits, top_k, 1.0)
    assert inside[tokens].all()
    if top_k <= 20:
        assert set(tokens) == set(np.flatnonzero(inside))


def test_a_token_of_no_weight_is_never_drawn():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500, 999]] = 0.0
    tokens, logprobs = tokens_of(logits)
    assert set(tokens) == {3, 500, 999}
    np.testing.assert_allclose(logprobs, -np.log(3), atol=1e-6)


def test_each_row_of_a_batch_is_drawn_by_its_own_options():
    rows = 800
    part = jnp.arange(rows) % 4
    how = Options(
        temperature=jnp.where(part == 0, 0.0, 1.0),
        top_k=jnp.where(part == 1, 2, 0),
        top_p=jnp.where(part == 2, 0.8, 1.0).astype(jnp.float32),
    )
    keys = keyed(0, jnp.full(rows, 5, jnp.uint32), jnp.arange(rows))
    wide = jnp.broadcast_to(LOGITS, (rows, 6))
    tokens = np.asarray(drawn(keys, jnp.zeros(rows, int), wide, how)[0])
    expected = [{3}, {0, 3}, set(np.flatnonzero(left(LOGITS, 0, 0.8))), set(range(6))]
    assert [set(tokens[part == i]) for i in range(4)] == expected
    for i, alone in enumerate(({"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.8}, {})):
        same = drawn(keys, jnp.zeros(rows, int), wide, options(rows, **alone))[0]
        np.testing.assert_array_equal(tokens[part == i], np.asarray(same)[part == i])


def test_the_options_of_other_rows_change_no_bit_of_a_row():
    rows, vocabulary = 64, 9000
    logits = np.random.default_rng(0).normal(0, 3, (rows, vocabulary)).astype(np.float32)
    logits[5] = np.nan
    keys = keyed(0, jnp.full(rows, 5, jnp.uint32), jnp.arange(rows))
    mixed = Options(
        temperature=jnp.where(jnp.arange(rows) % 5 == 3, 0.0, 0.9),
        top_k=jnp.asarray([0, 20, 300, 0], jnp.int32)[jnp.arange(rows) % 4],
        top_p=jnp.asarray([1.0, 0.9, 1.0], jnp.float32)[jnp.arange(rows) % 3],
    )
    together = drawn(keys, jnp.zeros(rows, int), logits, mixed)
    for row in (0, 1, 2, 3, 4, 6, 7, 9):
        same = jax.tree.map(lambda x, row=row: jnp.broadcast_to(x[row], (rows,)), mixed)
        alone = drawn(keys, jnp.zeros(rows, int), logits, same)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(a)[row], np.asarray(b)[row])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_nan_and_infinite_logits_give_a_token_with_a_nan_logprob(broken):
    logits = np.zeros(300, np.float32)
    logits[7] = broken
    for how in ({}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.0}):
        tokens, logprobs = tokens_of(logits, draws=5, **how)
        assert ((tokens >= 0) & (tokens < 300)).all()
        assert np.isnan(logprobs).all()
