"""Metrics against their definitions, and one more metric through every place that shows them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax import metrics


@pytest.mark.parametrize("n", range(1, 8))
def test_accuracy_at_k_is_the_share_of_subsets_that_hold_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(metrics.accuracy_at_k(n, c, k), share, rel_tol=1e-15)


def test_accuracy_at_k_neither_overflows_nor_cancels_with_many_samples():
    assert metrics.accuracy_at_k(100_000, 1, 10) == 10 / 100_000
    assert metrics.accuracy_at_k(1000, 400, 1) == 0.4
    assert metrics.accuracy_at_k(1000, 400, 601) == 1.0


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_accuracy_at_k_refuses_what_has_no_meaning(n, c, k):
    with pytest.raises(ValueError, match="no accuracy@"):
        metrics.accuracy_at_k(n, c, k)


samples = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12)


@given(samples, st.integers(1, 12))
def test_a_case_lies_between_its_worst_and_its_best(rights, k):
    estimate = metrics.case_accuracy(rights, k)
    if sum(right is not None for right in rights) < k:
        assert estimate == (None, 0.0, 1.0)
    else:
        assert estimate.worst <= estimate.value <= estimate.best


@given(samples, st.integers(1, 12), st.data())
def test_worst_and_best_hold_however_the_unresolved_turn_out(rights, k, data):
    truth = [data.draw(st.booleans()) if right is None else right for right in rights]
    if k <= len(truth):
        estimate = metrics.case_accuracy(rights, k)
        assert estimate.worst <= metrics.case_accuracy(truth, k).value <= estimate.best


def test_a_case_is_the_mean_over_its_judged_samples():
    assert metrics.case_mean([0.5, 1.0]) == (0.75, 0.75, 0.75)
    assert metrics.case_mean([0.5, None]) == (0.5, 0.25, 0.75)
    assert metrics.case_mean([None, None]) == (None, 0.0, 1.0)
    assert metrics.case_mean([]) == (None, 0.0, 1.0)


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=9))
def test_a_mean_over_samples_lies_between_its_worst_and_its_best(shares):
    estimate = metrics.case_mean(shares)
    assert 0 <= estimate.worst <= estimate.best <= 1
    if estimate.value is not None:
        assert estimate.worst <= estimate.value + 1e-12
        assert estimate.value <= estimate.best + 1e-12
