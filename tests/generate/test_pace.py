"""One rate limit and one backoff for all calls: they follow the answers of the service."""

import itertools

import pytest

from mcr_jax.generate.pace import Fault, Pacer


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def new_pacer(clock, most=64, **options):
    return Pacer(most, clock=clock, **{"patience": 600.0, "backoff": 1.0} | options)


def limit(pacer):
    """Counts the calls that may be in flight by starting them."""
    count = 0
    while pacer.wait() is not None:
        pacer.begin()
        count += 1
    for _ in range(count):
        pacer.end()
    return count


def round_of(pacer, clock, ending, calls=None):
    """Starts as many calls as the limit allows and ends each by `ending(pacer, began)`."""
    began = [pacer.begin() for _ in range(calls or limit(pacer))]
    clock.now += 0.1
    for start in began:
        ending(pacer, start)
        pacer.end()


def busy(pacer, began, wait=None):
    pacer.failed(began, Fault.BUSY, wait, "HTTP 429")


def away(pacer, began):
    pacer.failed(began, Fault.AWAY, None, "refused")


def failed(pacer, began):
    pacer.failed(began, Fault.FAILED, None, "HTTP 500")


def answered(pacer, began):
    pacer.answered()


def test_all_calls_may_start_at_first(clock):
    pacer = new_pacer(clock, most=8)
    assert (limit(pacer), pacer.wait(), pacer.left()) == (8, 0.0, None)


def test_calls_that_are_refused_together_halve_the_limit_once(clock):
    pacer = new_pacer(clock)
    round_of(pacer, clock, busy, calls=4)
    pacer.answered()
    assert limit(pacer) == 32


def test_the_limit_never_falls_below_one(clock):
    pacer = new_pacer(clock, most=4)
    for _ in range(9):
        round_of(pacer, clock, busy, calls=1)
        clock.now += 60
    assert limit(pacer) == 1


def test_the_limit_rises_by_one_with_each_round_of_answers_up_to_the_most(clock):
    pacer = new_pacer(clock, most=16)
    round_of(pacer, clock, busy, calls=2)
    limits = []
    for _ in range(12):
        clock.now += 60
        limits.append(limit(pacer))
        round_of(pacer, clock, answered)
    assert limits[0] == 8 and limits[-1] == 16
    assert all(0 <= later - sooner <= 1 for sooner, later in itertools.pairwise(limits))


def test_a_wait_that_the_service_names_holds_for_all_calls(clock):
    pacer = new_pacer(clock)
    round_of(pacer, clock, lambda pacer, began: busy(pacer, began, 7.5), calls=3)
    pacer.answered()  # in flight since before
    assert pacer.wait() == pytest.approx(7.5)
    clock.now += 7.5
    assert pacer.wait() == 0.0


def test_waits_double_from_the_backoff_to_the_longest_and_begin_anew_after_an_answer(clock):
    pacer, waits = new_pacer(clock, longest=5.0), []
    for _ in range(5):
        round_of(pacer, clock, away, calls=1)
        waits.append(pacer.wait())
        clock.now += 60
    for wait, full in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert full / 2 <= wait <= full
    round_of(pacer, clock, answered, calls=1)
    round_of(pacer, clock, away, calls=1)
    assert pacer.wait() <= 1


def test_calls_that_fail_together_are_one_wait(clock):
    pacer = new_pacer(clock)
    round_of(pacer, clock, away)
    assert 0.5 <= pacer.wait() <= 1


def test_single_failures_that_may_be_due_to_the_request_delay_no_other_call(clock):
    pacer = new_pacer(clock)
    for _ in range(20):
        round_of(pacer, clock, failed, calls=2)
        round_of(pacer, clock, answered, calls=1)
    assert (pacer.wait(), limit(pacer)) == (0.0, 64)


@pytest.mark.parametrize("ending", [away, failed, busy])
def test_during_an_outage_one_call_at_a_time_probes_the_service(clock, ending):
    pacer = new_pacer(clock)
    round_of(pacer, clock, ending)
    clock.now += 60
    assert limit(pacer) == 1
    assert "no answer for 60 s" in pacer.status() and "giving up in 540 s" in pacer.status()


def test_after_an_outage_the_limit_doubles_with_each_round_up_to_its_old_value(clock):
    pacer, limits = new_pacer(clock), []
    round_of(pacer, clock, away)
    clock.now += 60
    for _ in range(7):
        limits.append(limit(pacer))
        round_of(pacer, clock, answered)
    assert limits == [1, 2, 4, 8, 16, 32, 64]


def test_patience_counts_the_seconds_without_any_answer(clock):
    pacer = new_pacer(clock, patience=30.0)
    round_of(pacer, clock, away, calls=1)
    clock.now += 20
    assert pacer.left() == pytest.approx(10)
    pacer.answered()
    assert pacer.left() is None
    round_of(pacer, clock, away, calls=1)
    clock.now += 31
    assert pacer.left() < 0
    assert pacer.given_up() == "no answer for 31 s (refused)"


def test_a_wait_longer_than_patience_is_given_up_at_once(clock):
    pacer = new_pacer(clock, patience=30.0)
    round_of(pacer, clock, lambda pacer, began: busy(pacer, began, 3600.0), calls=1)
    pacer.answered()
    assert pacer.left() == 0.0
    assert pacer.given_up() == "the service asks to wait 3,600 s (HTTP 429)"


def test_the_status_shows_calls_in_flight_the_limit_and_a_wait(clock):
    pacer = new_pacer(clock, most=8)
    pacer.begin()
    assert pacer.status() == "1 in flight, limit 8"
    busy(pacer, clock.now, 20.0)
    assert pacer.status() == "1 in flight, limit 4, waiting 20 s (HTTP 429)"
