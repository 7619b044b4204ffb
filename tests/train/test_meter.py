"""Rates are of real tokens and real steps; what stands apart from a step is not in it."""

import dataclasses

import jax
import numpy as np
import pytest

from mcr_jax.model import flops
from mcr_jax.train import meter
from mcr_jax.train.meter import Meter, segment_lengths

IDS = np.array([[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


@pytest.fixture
def clock(clock_of):
    return clock_of(meter)


def test_segments_are_counted_row_by_row_without_padding():
    assert sorted(segment_lengths(IDS)) == [1, 2, 3]
    rng = np.random.default_rng(0)
    for _ in range(20):
        cuts = [rng.integers(1, 9, rng.integers(0, 5)) for _ in range(4)]
        ids = np.zeros((4, 40), int)
        for row, lengths in enumerate(cuts):
            ids[row, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
        assert sorted(segment_lengths(ids)) == sorted(np.concatenate(cuts))


def test_a_rate_leaves_out_the_first_step_and_what_stands_apart(clock, tiny_shape):
    made = Meter(tiny_shape)
    clock.now += 50  # reading weights, compiling
    assert made.step(IDS, 2) == {"tokens": 6, "seconds": 50.0}
    assert made.rates() == {}
    clock.now += 2
    with made.apart():
        clock.now += 7
    with made.waiting():
        clock.now += 1
    told = made.step(IDS, 2)
    assert told["tokens_per_second"] == pytest.approx(6 / 3)
    assert told["data_wait"] == pytest.approx(1 / 3, abs=1e-4)
    assert told["goodput"] == pytest.approx(3 / 60)
    assert "mfu" not in told  # of a CPU no peak is known


def test_a_step_that_ends_while_apart_counts_only_up_to_its_end(clock, tiny_shape):
    made = Meter(tiny_shape)
    made.step(IDS, 2)
    with made.apart():  # the loop waits for the step under way, then measures something
        clock.now += 4
        assert made.step(IDS, 2)["tokens_per_second"] == pytest.approx(6 / 4)
        clock.now += 10
    clock.now += 2
    assert made.step(IDS, 2)["tokens_per_second"] == pytest.approx(12 / 6)


def test_mfu_is_work_over_time_over_the_peak_of_all_devices(clock, tiny_shape, monkeypatch):
    monkeypatch.setitem(flops.PEAKS, jax.devices()[0].device_kind, 1e6)
    made = Meter(tiny_shape)
    made.step(IDS, 2)
    clock.now += 0.5
    work = flops.step_flops(tiny_shape, [1, 2, 3], 2)
    assert made.step(IDS, 2)["mfu"] == pytest.approx(
        work / 0.5 / (1e6 * jax.device_count()), rel=1e-2
    )


def test_only_the_newest_steps_make_the_rate(clock, tiny_shape):
    made = Meter(dataclasses.replace(tiny_shape, layers=1))
    for _ in range(3):
        clock.now += 100
        made.step(IDS, 2)
    for _ in range(meter.WINDOW_STEPS):
        clock.now += 1
        made.step(IDS, 2)
    assert made.rates()["tokens_per_second"] == pytest.approx(6)
