"""Batches are a function of the step, and say of every token whose it is and what it predicts."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr_jax.data.example import Example
from mcr_jax.data.loader import Batches, fixed_batches, stack

ROWS, ROW_TOKENS = 3, 32
NAMES = {"tokens", "targets", "positions", "segment_ids", "weights"}


def example(number: int, prompt: int, answer: int) -> Example:
    """Token ids that name the example and the place; id 0 is a token as good as any."""
    ids = np.arange(prompt + answer, dtype=np.int32) + 100 * number
    return Example(str(number), ids, np.arange(prompt + answer) >= prompt)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(3)
    return [example(n, *rng.integers(1, 12, 2)) for n in range(40)]


def batches(examples, seed=5):
    return Batches(examples, ROWS, ROW_TOKENS, seed)


def contents(batch) -> list[tuple[int, ...]]:
    """The token runs of a batch, one per segment."""
    found = []
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
        found += [tuple(tokens[segments == s].tolist()) for s in range(1, segments.max() + 1)]
    return found


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_batch_is_the_same_whatever_was_asked_for_before(examples, steps):
    busy = batches(examples)
    for step in steps:
        fresh = batches(examples)[step]
        asked = busy[step]
        assert fresh.keys() == asked.keys() == NAMES
        for name in NAMES:
            np.testing.assert_array_equal(asked[name], fresh[name])


def test_every_epoch_holds_every_token_of_every_example_once(examples):
    made = batches(examples)
    wanted = collections.Counter(tuple(e.ids.tolist()) for e in examples)
    runs, step = [], 0
    while len(runs) < 3 * len(examples):
        runs += contents(made[step])
        step += 1
    for epoch in range(3):
        first = epoch * len(examples)
        assert collections.Counter(runs[first : first + len(examples)]) == wanted


def test_epochs_are_counted_in_rows_and_no_epoch_is_cut_at_a_batch(examples):
    made = batches(examples)
    passed = [made.epoch(step) for step in range(40)]
    assert passed[0] == 0
    assert all(a < b for a, b in itertools.pairwise(passed))
    assert any(step % 1 for step in passed if step > 1)  # a batch that reaches over an epoch's end


def test_seeds_differ(examples):
    assert contents(batches(examples, 5)[0]) != contents(batches(examples, 6)[0])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_targets_weights_and_positions_follow_the_segments(sizes):
    rows, number = [], 0
    for row in sizes:
        rows.append([example(number + i, *size) for i, size in enumerate(row)])
        number += len(row)
    batch = stack(rows, 36)
    assert all(array.shape == (len(rows), 36) for array in batch.values())
    for r, row in enumerate(rows):
        start = 0
        for segment, e in enumerate(row, 1):
            stop = start + len(e.ids)
            own = {name: array[r, start:stop] for name, array in batch.items()}
            np.testing.assert_array_equal(own["tokens"], e.ids)
            np.testing.assert_array_equal(own["targets"][:-1], e.ids[1:])
            np.testing.assert_array_equal(own["weights"][:-1], e.trained[1:])
            assert own["weights"][-1] == 0  # the next token is another example's
            np.testing.assert_array_equal(own["positions"], np.arange(len(e.ids)))
            assert set(own["segment_ids"]) == {segment}
            start = stop
        assert not batch["segment_ids"][r, start:].any()
        assert not batch["weights"][r, start:].any()


def test_every_trained_token_but_no_other_is_a_weighted_target(examples):
    made = fixed_batches(examples, ROWS, ROW_TOKENS)
    weighted = sorted(t for b in made for t in b["targets"][b["weights"] == 1].tolist())
    assert weighted == sorted(t for e in examples for t in e.ids[e.trained].tolist())
    assert all(set(np.unique(batch["weights"])) <= {0, 1} for batch in made)


def test_validation_sees_every_example_once_in_batches_of_one_shape(examples):
    made = fixed_batches(examples, 7, ROW_TOKENS)
    assert {batch["tokens"].shape for batch in made} == {(7, ROW_TOKENS)}
    runs = collections.Counter(run for batch in made for run in contents(batch))
    assert runs == collections.Counter(tuple(e.ids.tolist()) for e in examples)
    again = fixed_batches(examples, 7, ROW_TOKENS)
    for a, b in zip(made, again, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
