"""The packing plan loses nothing, overfills nothing and depends on nothing but its arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.data.packing import plan

lengths = st.lists(st.integers(1, 50), max_size=120)
epochs = st.integers(0, 5)
seeds = st.integers(0, 2**31 - 1)


@given(lengths, st.integers(50, 200), seeds, epochs)
def test_every_example_stands_in_exactly_one_row_and_no_row_overflows(sizes, capacity, seed, epoch):
    rows = plan(sizes, capacity, seed, epoch)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(0 < sum(sizes[i] for i in row) <= capacity for row in rows)


@given(lengths, st.integers(50, 200), seeds, epochs)
def test_the_plan_is_a_function_of_its_arguments(sizes, capacity, seed, epoch):
    first = plan(sizes, capacity, seed, epoch)
    np.random.default_rng(seed).permutation(7)
    np.random.seed(seed)
    assert plan(tuple(sizes), capacity, seed, epoch) == first


@given(seeds, epochs)
def test_epochs_and_seeds_order_the_examples_differently(seed, epoch):
    sizes = [7] * 60
    now = plan(sizes, 20, seed, epoch)
    assert plan(sizes, 20, seed, epoch + 1) != now
    assert plan(sizes, 20, seed + 1, epoch) != now


@pytest.mark.parametrize("epoch", [0, 1])
def test_rows_of_cases_of_real_length_are_at_least_95_percent_full(epoch):
    rng = np.random.default_rng(11)
    sizes = (rng.integers(250, 901, 2000) + rng.integers(150, 601, 2000)).tolist()
    rows = plan(sizes, 4096, 0, epoch)
    assert sum(sizes) / (len(rows) * 4096) >= 0.95


def test_the_first_rows_are_a_fair_sample():
    rng = np.random.default_rng(12)
    sizes = rng.integers(20, 400, 2000)
    rows = plan(sizes.tolist(), 1024, 0, 0)
    early = np.concatenate([sizes[row] for row in rows[: len(rows) // 4]])
    standard_error = sizes.std() / np.sqrt(len(early))
    assert abs(early.mean() - sizes.mean()) < 4 * standard_error


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="51 tokens is longer than a row of 50"):
        plan([3, 51], 50, 0, 0)


def test_nothing_to_pack_is_no_rows():
    assert plan([], 50, 0, 0) == []
