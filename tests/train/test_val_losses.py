"""The history of validation losses says which was lowest, and when training is to stop early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.train.val_losses import ValLosses

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=12)


@given(LOSSES)
def test_a_loss_is_the_lowest_only_if_all_before_are_higher(values):
    losses = ValLosses()
    lowest = [losses.add(step, value) for step, value in enumerate(values, 1)]
    assert lowest == [all(b > v for b in values[:i]) for i, v in enumerate(values)]
    assert losses.best == (values.index(min(values)) + 1, min(values))
    assert losses.history == list(enumerate(values, 1))


@given(LOSSES, st.integers(1, 4))
def test_it_is_stale_if_the_last_losses_are_no_lower_than_the_best_before_them(values, patience):
    since_best = len(values) - 1 - values.index(min(values))
    assert ValLosses(enumerate(values, 1), patience).stale == (since_best >= patience)


def test_without_patience_or_losses_it_is_never_stale():
    assert not ValLosses([(1, 1.0), (2, 2.0), (3, 3.0)], 0).stale
    assert not ValLosses([], 1).stale
    assert ValLosses([], 1).best is None


@pytest.mark.parametrize(("step", "measured"), [(2, True), (3, False)])
def test_a_step_is_in_it_once_it_was_measured(step, measured):
    assert (step in ValLosses([(2, 0.5)])) is measured
