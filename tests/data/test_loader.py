"""Batches are a function of the step, and say of every token whose it is and what it predicts."""

import collections
import gc
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr_jax.data import packing
from mcr_jax.data.example import Example
from mcr_jax.data.loader import Batches, fixed_batches, stack
from mcr_jax.data.tokens import tokenize

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


@pytest.fixture(scope="module")
def many():
    """So many that their plan is worth a file."""
    rng = np.random.default_rng(3)
    return [example(n, *rng.integers(1, 12, 2)) for n in range(1001)]


def batches(examples, seed=5, folder=None):
    return Batches(examples, ROWS, ROW_TOKENS, seed, folder)


def assert_equal(batch, other):
    assert batch.keys() == other.keys() == NAMES
    for name in NAMES:
        np.testing.assert_array_equal(batch[name], other[name])
        assert batch[name].dtype == other[name].dtype


def reading() -> list[threading.Thread]:
    """The threads that read ahead."""
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


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
        assert_equal(busy[step], batches(examples)[step])


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


@pytest.mark.parametrize("passes", [0.1, 0.5, 1, 1.7, 2, 3, 3.01])
def test_so_many_passes_take_the_steps_after_which_they_are_made_and_not_one_more(examples, passes):
    made = batches(examples)
    steps = batches(examples).steps(passes)
    assert made.epoch(steps - 1) < passes <= made.epoch(steps)


def test_a_share_of_an_epoch_that_no_float_tells_exactly_takes_no_step_more():
    assert 0.07 * 100 > 7
    hundred = [example(n, 1, 1) for n in range(100)]
    assert Batches(hundred, 1, 2, 0).steps(0.07) == 7


def test_any_share_of_an_epoch_takes_a_step_and_none_takes_none(examples):
    assert [batches(examples).steps(passes) for passes in (1e-9, 0)] == [1, 0]


def test_the_share_of_filled_slots_is_that_of_the_first_epoch(examples):
    one = Batches(examples, 1, ROW_TOKENS, 5)
    segments = [one[step]["segment_ids"] for step in range(one.steps(1))]
    assert one.filled == batches(examples).filled == np.mean(np.array(segments) > 0)


def test_a_batch_tells_whose_cases_are_in_it(examples):
    made = batches(examples)
    for step in range(30):
        numbers = [str(run[0] // 100) for run in contents(made[step])]
        assert made.fingerprints(step) == numbers


@settings(max_examples=20)
@given(st.integers(0, 40), st.integers(0, 12), st.integers(1, 4))
def test_a_run_resumed_at_any_step_reads_what_a_straight_one_reads(examples, first, count, rows):
    straight = Batches(examples, rows, ROW_TOKENS, 5)
    resumed = list(Batches(examples, rows, ROW_TOKENS, 5).read(first, first + count))
    assert len(resumed) == count
    for step, batch in enumerate(resumed, first):
        assert_equal(batch, straight[step])


def test_a_reader_that_is_closed_forgotten_or_fails_leaves_no_thread_behind(examples):
    read = batches(examples).read(0, 10**6)
    next(read)
    assert reading()
    read.close()
    forgotten = batches(examples).read(0, 10**6)
    next(forgotten)
    del forgotten
    gc.collect()
    too_long = example(1, 30, 30)
    with pytest.raises(ValueError, match="60 tokens is longer than a row of 32"):
        list(batches([too_long]).read(0, 3))
    for thread in reading():
        thread.join(60)
    assert not reading()


def test_a_kept_plan_outlives_a_change_of_how_plans_are_drawn(many, tmp_path, monkeypatch):
    before = batches(many, folder=tmp_path)
    ends_at = before.steps(2)
    expected = [before[step] for step in range(ends_at)]
    kept = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    drawn = packing.plan  # what a numpy that draws otherwise from a seed would plan
    monkeypatch.setattr(packing, "plan", lambda n, c, seed, epoch: drawn(n, c, seed + 1, epoch))
    for batch, there in zip(batches(many, folder=tmp_path).read(0, ends_at), expected, strict=True):
        assert_equal(batch, there)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == kept
    assert contents(batches(many)[0]) != contents(expected[0])


def test_other_lengths_rows_seeds_or_versions_never_meet_a_kept_plan(many, tmp_path, monkeypatch):
    for number, (some, row_tokens, seed) in enumerate(
        ((many, 32, 5), (many[1:], 32, 5), (many, 33, 5), (many, 32, 6)), start=1
    ):
        kept = Batches(some, ROWS, row_tokens, seed, tmp_path)
        assert_equal(kept[0], Batches(some, ROWS, row_tokens, seed)[0])
        assert len(list(tmp_path.iterdir())) == number
    monkeypatch.setattr(packing, "VERSION", packing.VERSION + 1)
    assert batches(many, folder=tmp_path)[0]
    assert len(list(tmp_path.iterdir())) == number + 1


def test_a_damaged_plan_is_made_anew(many, tmp_path):
    assert batches(many, folder=tmp_path).filled
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert_equal(batches(many, folder=tmp_path)[0], batches(many)[0])


def test_the_plan_of_a_few_examples_is_not_worth_a_file(examples, tmp_path):
    assert_equal(batches(examples, folder=tmp_path)[0], batches(examples)[0])
    assert not list(tmp_path.iterdir())


def test_lengths_that_are_known_are_not_read_from_the_examples(examples):
    class Known(list):
        lengths = np.array([len(e.ids) for e in examples])

        def __iter__(self):
            raise AssertionError("all examples were read")

    assert_equal(batches(Known(examples))[3], batches(examples)[3])


def test_there_are_no_batches_of_nothing_nor_before_the_first(examples):
    with pytest.raises(ValueError, match="no example"):
        batches([])
    with pytest.raises(IndexError, match="-1"):
        batches(examples)[-1]


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


def test_the_pad_id_is_a_token_like_any_other():
    rng = np.random.default_rng(8)
    some = [example(n, *rng.integers(1, 12, 2)) for n in range(20)]
    zeros = [Example(e.fingerprint, np.zeros_like(e.ids), e.trained) for e in some]
    for step in range(8):
        batch, of_zeros = batches(some)[step], batches(zeros)[step]
        for name in ("positions", "segment_ids", "weights"):
            np.testing.assert_array_equal(of_zeros[name], batch[name])


def test_the_end_of_a_turn_is_trained_and_padding_is_not_where_both_have_one_id(
    clinic_cases, clinic_prompt, clinic_tokenizer
):
    eos = clinic_tokenizer.eos_ids[0]
    assert eos != 0

    def with_the_pad_id(e: Example) -> Example:
        ids = np.where(e.ids == eos, 0, np.where(e.ids == 0, eos, e.ids)).astype(np.int32)
        return Example(e.fingerprint, ids, e.trained)

    tokens = tokenize(clinic_cases["train"], clinic_prompt, clinic_tokenizer, None)
    made = fixed_batches([with_the_pad_id(e) for e in tokens], 4, 512)
    weighted, padding = 0, 0
    for batch in made:
        weighted += ((batch["targets"] == 0) & (batch["weights"] == 1)).sum()
        padding += (batch["segment_ids"] == 0).sum()
        assert not batch["weights"][batch["segment_ids"] == 0].any()
    assert weighted == len(tokens)  # one end of a turn each
    assert padding > 0
