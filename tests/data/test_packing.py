"""The packing plan loses nothing, wastes next to nothing, depends on its arguments and is fair."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcr_jax.data.packing import LOOK_AHEAD, VERSION, plan

lengths = st.lists(st.integers(1, 50), max_size=120)
epochs = st.integers(0, 5)
seeds = st.integers(0, 2**31 - 1)


def like_cases(count: int, seed: int) -> np.ndarray:
    """Lengths as those of published cases: a presentation and a trace."""
    rng = np.random.default_rng((99, seed))
    return rng.integers(250, 901, count) + rng.integers(150, 601, count)


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
    assert plan(np.array(sizes, np.int64), capacity, seed, epoch) == first


def test_a_version_stands_for_one_plan():
    made = plan([3, 11, 7, 5, 9, 2, 8, 6, 4, 10], 20, seed=1, epoch=2)
    assert (VERSION, made) == (2, [[8, 5, 0, 1], [6, 3, 2], [9, 4], [7]]), (
        "plans are kept under VERSION: where another plan is meant, raise it and write both here"
    )


@given(seeds, epochs)
def test_epochs_and_seeds_order_the_examples_differently(seed, epoch):
    sizes = [7] * 60
    now = plan(sizes, 20, seed, epoch)
    assert plan(sizes, 20, seed, epoch + 1) != now
    assert plan(sizes, 20, seed + 1, epoch) != now


@given(lengths, st.integers(50, 200), seeds)
def test_the_head_of_the_queue_never_fits_a_row_that_was_closed_before_it(sizes, capacity, seed):
    rows = plan(sizes, capacity, seed, 0)
    for row, following in itertools.pairwise(rows):
        assert sum(sizes[i] for i in row) + sizes[following[0]] > capacity


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(30, 60), seeds)
def test_no_choice_among_the_waiting_fills_a_row_better(sizes, capacity, seed):
    waiting = set(range(len(sizes)))
    for head, *joined in plan(sizes, capacity, seed, 0):
        waiting.remove(head)
        sums = {
            sum(sizes[i] for i in some)
            for count in range(len(waiting) + 1)
            for some in itertools.combinations(waiting, count)
        }
        best = max(total for total in sums if sizes[head] + total <= capacity)
        assert sum(sizes[i] for i in joined) == best
        waiting -= set(joined)


@example([10] * 299 + [9], 19, 0, 0)  # with the nine, any row would be full
@given(st.lists(st.integers(5, 50), min_size=1, max_size=400), st.integers(50, 200), seeds, epochs)
def test_the_first_rows_hold_the_first_of_the_shuffle_but_for_those_at_its_edge(
    sizes, capacity, seed, epoch
):
    shuffle = [i for (i,) in plan([1] * len(sizes), 1, seed, epoch)]  # one to a row: as drawn
    rank = {index: place for place, index in enumerate(shuffle)}
    placed = 0
    for row in plan(sizes, capacity, seed, epoch):
        edge = placed + capacity // min(sizes) + LOOK_AHEAD
        assert max(rank[i] for i in row) <= edge
        placed += len(row)


@pytest.mark.parametrize("count", [500, 13_092])
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_cases_of_real_length_are_at_least_97_percent_full(count, seed):
    sizes = like_cases(count, seed)
    rows = plan(sizes, 4096, seed, epoch=seed + 1)
    assert sizes.sum() / (len(rows) * 4096) >= 0.97


@pytest.mark.parametrize("seed", range(4))
def test_an_example_stands_early_or_late_whatever_its_length(seed):
    sizes = like_cases(13_092, seed)
    rows = plan(sizes, 4096, seed, 0)
    numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    correlation = np.corrcoef(numbers, sizes[np.concatenate(rows)])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(sizes))  # four standard errors of none


def test_the_first_rows_are_a_fair_sample():
    rng = np.random.default_rng(12)
    sizes = rng.integers(20, 400, 2000)
    rows = plan(sizes, 1024, 0, 0)
    early = np.concatenate([sizes[row] for row in rows[: len(rows) // 4]])
    standard_error = sizes.std() / np.sqrt(len(early))
    assert abs(early.mean() - sizes.mean()) < 4 * standard_error


def test_many_short_examples_fill_a_long_row():
    rows = plan([10] * 2000, 4096, 0, 0)
    assert [len(row) for row in rows] == [409, 409, 409, 409, 364]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="51 tokens is longer than a row of 50"):
        plan([3, 51], 50, 0, 0)


def test_nothing_to_pack_is_no_rows():
    assert plan([], 50, 0, 0) == []
