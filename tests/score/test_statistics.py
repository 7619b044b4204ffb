"""Intervals and tests against scipy, enumeration, closed forms and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mcr_jax import statistics


def _interval(values, seed=0, resamples=2000, **options):
    return statistics.interval(values, confidence=0.95, resamples=resamples, seed=seed, **options)


def _shares(seed, cases, a, b):
    rng = np.random.default_rng(seed)
    return rng.binomial(10, rng.beta(a, b, cases)) / 10


@pytest.mark.parametrize("a, b, cases", [(0.5, 0.5, 80), (0.1, 0.9, 80), (2, 1, 30)])
def test_the_interval_is_that_of_scipy_within_monte_carlo_error(a, b, cases):
    values = _shares(3, cases, a, b)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    ours = _interval(values, resamples=20_000)
    np.testing.assert_allclose(ours, theirs, atol=0.04 * width)


def test_without_its_correction_the_bootstrap_is_scipys_percentile_one():
    values = _shares(4, 60, 1, 2)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    means = statistics._bootstrap_means(values, 20_000, 0)
    interval = theirs.confidence_interval
    ours = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(ours, interval, atol=0.04 * (interval.high - interval.low))
    assert means.std() == pytest.approx(theirs.standard_error, rel=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    trials, covered = 400, 0
    for trial in range(trials):
        low, high = _interval(_shares(trial, 80, 0.1, 0.9), resamples=500)
        covered += low <= 0.1 <= high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 1e-4


def test_paired_differences_are_covered_too():
    trials, covered = 300, 0
    for trial in range(trials):
        differences = _shares(2 * trial, 60, 1, 1) - _shares(2 * trial + 1, 60, 1, 3)
        low, high = _interval(differences, resamples=500, bounds=(-1.0, 1.0))
        covered += low <= 0.25 <= high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 1e-4


@pytest.mark.parametrize("cases", [1, 2, 80])
def test_all_wrong_and_all_right_have_clopper_pearsons_bounds(cases):
    exact = stats.binomtest(0, cases).proportion_ci(0.95, method="exact")
    assert _interval([0.0] * cases) == pytest.approx((exact.low, exact.high))
    exact = stats.binomtest(cases, cases).proportion_ci(0.95, method="exact")
    assert _interval([1.0] * cases) == pytest.approx((exact.low, exact.high))


def test_equal_values_within_the_bounds_do_not_claim_certainty():
    q = 1 - 0.025 ** (1 / 10)
    assert _interval([0.5] * 10) == pytest.approx((0.5 - 0.5 * q, 0.5 + 0.5 * q))
    assert _interval([0.0] * 10, bounds=(-1.0, 1.0)) == pytest.approx((-q, q))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=1, max_size=40))
def test_the_interval_lies_within_the_bounds_and_holds_the_mean(values):
    low, high = _interval(values, resamples=500)
    assert 0 <= low <= statistics.mean(values) + 1e-12
    assert statistics.mean(values) - 1e-12 <= high <= 1


def test_the_interval_depends_on_the_seed_alone(monkeypatch):
    values = _shares(5, 50, 1, 1)
    assert _interval(values) == _interval(values)
    assert _interval(values, seed=1) != _interval(values, seed=2)


def test_resampling_is_cut_into_chunks_that_fit_in_memory(monkeypatch):
    values = _shares(5, 50, 1, 1)
    monkeypatch.setattr(statistics, "_CHUNK", 170)
    means = statistics._bootstrap_means(values, 1000, 0)
    assert means.shape == (1000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)


def _enumerated(differences):
    observed = abs(sum(differences)) - 1e-9
    signed = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in signed]
    return np.mean([total >= observed for total in sums])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([-1.0, -0.3, -0.1, 0.0, 0.1, 0.2, 0.7]), min_size=1, max_size=9))
def test_the_exact_p_value_is_the_enumerated_one(differences):
    p_value, test = statistics.sign_flip_test(differences, draws=10, seed=0)
    assert p_value == pytest.approx(_enumerated(differences))
    assert test.endswith("exact")


def test_the_p_value_is_that_of_scipy():
    differences = _shares(6, 12, 1, 1) - _shares(7, 12, 1, 2)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert statistics.sign_flip_test(differences, draws=10, seed=0)[0] == pytest.approx(
        theirs.pvalue
    )


def test_monte_carlo_agrees_with_the_exact_test(monkeypatch):
    differences = np.concatenate([np.full(9, 0.2), np.full(4, -0.3)])
    exact, _ = statistics.sign_flip_test(differences, draws=10, seed=0)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 3)
    drawn, test = statistics.sign_flip_test(differences, draws=20_000, seed=0)
    assert drawn == pytest.approx(exact, abs=0.015)
    assert "20000 draws" in test


def test_a_monte_carlo_p_value_is_never_zero():
    p_value, _ = statistics.sign_flip_test([0.5] * 40, draws=999, seed=0)
    assert p_value == 1 / 1000


def test_no_difference_has_p_1():
    assert statistics.sign_flip_test([0.0] * 30, draws=99, seed=0)[0] == 1.0


def test_under_the_null_p_values_are_not_too_small():
    rng = np.random.default_rng(8)
    p_values = [
        statistics.sign_flip_test(rng.choice([-0.4, -0.1, 0.1, 0.4], 14), draws=9, seed=0)[0]
        for _ in range(300)
    ]
    assert np.mean(np.asarray(p_values) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.parametrize("first, second", [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 61)])
def test_mcnemars_exact_p_value_is_that_of_statsmodels(first, second):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    theirs = tables.mcnemar([[7, first], [second, 4]], exact=True).pvalue
    assert statistics.mcnemar_test(first, second) == pytest.approx(theirs)


@pytest.mark.parametrize("first, second", [(2, 6), (0, 7), (8, 8), (1, 1)])
def test_mcnemars_test_is_the_exact_sign_flip_test_of_right_and_wrong(first, second):
    flipped, _ = statistics.sign_flip_test([-1.0] * first + [1.0] * second, draws=9, seed=0)
    assert statistics.mcnemar_test(first, second) == pytest.approx(flipped)


p_values = st.lists(st.floats(0, 1), max_size=12)


@given(p_values)
def test_holm_is_never_below_the_raw_p_value_nor_above_1_and_keeps_the_order(raw):
    adjusted = statistics.holm(raw)
    assert all(p <= a <= 1 for p, a in zip(raw, adjusted, strict=True))
    pairs = sorted(zip(raw, adjusted, strict=True))
    assert all(a <= b for (_, a), (_, b) in itertools.pairwise(pairs))


@given(p_values, st.randoms())
def test_holm_does_not_depend_on_the_order_of_the_tests(raw, random):
    shuffled = raw[:]
    random.shuffle(shuffled)
    assert sorted(statistics.holm(shuffled)) == sorted(statistics.holm(raw))


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for tests in 20 * [*range(1, 13)]:
        raw = rng.choice([0.0, 1.0, 1e-300, *rng.uniform(0, 1, 6)], tests)  # with ties
        theirs = multitest.multipletests(raw, method="holm")[1]
        np.testing.assert_allclose(statistics.holm(raw), theirs, rtol=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(raw, alpha):
    rejected, ordered = set(), sorted(range(len(raw)), key=lambda i: raw[i])
    for step, i in enumerate(ordered):
        if raw[i] * (len(raw) - step) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(statistics.holm(raw)) if p <= alpha} == rejected
