"""Tokens are drawn from exactly the distribution that is asked for, by keys of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mcr_jax.generate.engine.sampling import draw, nucleus, sample_keys

LOGITS = np.array([1.3, 0.2, -0.7, 2.0, 0.9, -1.0], np.float32)
DRAWS = 6000
drawn = jax.jit(draw)
kept = jax.jit(nucleus)


def first_tokens(temperature, top_p=1.0, *, position=0, case=7, seed=0):
    """One token of each of many samples of a case that all see `LOGITS`."""
    keys = sample_keys(seed, jnp.array([case], jnp.uint32), jnp.arange(DRAWS)[None])
    logits = jnp.broadcast_to(LOGITS, (1, DRAWS, len(LOGITS)))
    tokens = drawn(keys, position, logits, jnp.float32([temperature]), jnp.float32([top_p]))
    return np.asarray(tokens)[0]


def softmax(x):
    p = np.exp(x.astype(np.float64) - x.max())
    return p / p.sum()


def sorted_nucleus(logits, top_p: float) -> np.ndarray:
    """The usual definition: the shortest head of the sorted tokens whose mass reaches top_p."""
    p = softmax(logits)
    order = np.argsort(-p, kind="stable")
    count = min(int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1, len(p))
    return p >= p[order[count - 1]]  # ties with the last are kept too


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.8])
def test_frequencies_are_those_of_the_softmax_at_the_temperature(temperature):
    counts = np.bincount(first_tokens(temperature), minlength=6)
    expected = softmax(LOGITS / temperature) * DRAWS
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_frequencies_inside_the_nucleus_are_the_softmax_renormalised():
    inside = sorted_nucleus(LOGITS, 0.8)
    assert 1 < inside.sum() < 6
    counts = np.bincount(first_tokens(1.0, 0.8), minlength=6)
    assert not counts[~inside].any()
    p = softmax(LOGITS)[inside]
    assert stats.chisquare(counts[inside], DRAWS * p / p.sum()).pvalue > 1e-3


def test_temperature_zero_takes_the_likeliest():
    assert set(first_tokens(0.0)) == {3}
    assert set(first_tokens(0.0, 0.5)) == {3}


@pytest.mark.parametrize(
    "other", [{"position": 1}, {"case": 8}, {"seed": 1}], ids=lambda other: next(iter(other))
)
def test_another_position_case_or_seed_draws_independently(other):
    one, two = first_tokens(1.0), first_tokens(1.0, **other)
    p = softmax(LOGITS)
    by_chance = (p**2).sum()
    spread = np.sqrt(by_chance * (1 - by_chance) / DRAWS)
    assert abs((one == two).mean() - by_chance) < 4 * spread


def test_samples_of_a_case_are_independent():
    tokens = first_tokens(1.0)
    by_chance = (softmax(LOGITS) ** 2).sum()
    spread = np.sqrt(by_chance * (1 - by_chance) / DRAWS)
    assert abs((tokens[1:] == tokens[:-1]).mean() - by_chance) < 5 * spread


def test_a_key_belongs_to_its_case_and_sample_alone():
    cases, samples = np.array([5, 2**32 - 1], np.uint32), np.array([[0, 1], [3, 0]])
    keys = jax.random.key_data(sample_keys(3, cases, samples))
    turned = jax.random.key_data(sample_keys(3, cases[::-1].copy(), samples[::-1, ::-1].copy()))
    np.testing.assert_array_equal(keys, turned[::-1, ::-1])
    assert len({tuple(key) for row in np.asarray(keys).tolist() for key in row}) == 4


sixteenths = st.integers(-128, 128).map(lambda n: n / 16)  # logits are equal or clearly apart


@settings(max_examples=300)
@given(st.lists(sixteenths, min_size=12, max_size=12), st.floats(0.01, 0.999))
def test_the_nucleus_is_the_one_found_by_sorting(logits, top_p):
    logits = np.array(logits, np.float32)
    found = np.asarray(kept(logits[None, None], jnp.float32([top_p])))[0, 0]
    inside = np.isfinite(found)
    np.testing.assert_array_equal(found[inside], logits[inside])
    smaller, larger = (sorted_nucleus(logits, top_p + slack) for slack in (-1e-5, 1e-5))
    assert not (smaller & ~inside).any()  # float32 sums decide only within the slack
    assert not (inside & ~larger).any()


@given(st.lists(sixteenths, min_size=12, max_size=12))
def test_a_nucleus_of_everything_leaves_the_logits_alone(logits):
    logits = np.array(logits, np.float32)
    np.testing.assert_array_equal(kept(logits[None, None], jnp.float32([1.0]))[0, 0], logits)


def test_prompts_of_one_batch_keep_their_own_temperature_and_nucleus():
    keys = sample_keys(0, jnp.arange(3, dtype=jnp.uint32), jnp.tile(jnp.arange(200), (3, 1)))
    logits = jnp.broadcast_to(LOGITS, (3, 200, 6))
    tokens = np.asarray(
        drawn(keys, 0, logits, jnp.float32([0.0, 1.0, 1.0]), jnp.float32([1.0, 0.8, 1.0]))
    )
    assert set(tokens[0]) == {3}
    assert set(tokens[1]) == set(np.flatnonzero(sorted_nucleus(LOGITS, 0.8)))
    assert set(tokens[2]) == set(range(6))
