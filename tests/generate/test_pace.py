"""All calls share one rate limit and one backoff, which follow the replies of the service."""

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


def pacer(clock, most=64, **options):
    return Pacer(most, clock=clock, **{"patience": 600.0, "backoff": 1.0} | options)


def limit(made):
    """Counts how many calls may be in flight, by starting them."""
    count = 0
    while made.wait() is not None:
        made.begin()
        count += 1
    for _ in range(count):
        made.end()
    return count


def round_of(made, clock, ending, calls=None):
    """Starts as many calls as the limit allows, and ends each by `ending(made, began)`."""
    began = [made.begin() for _ in range(calls or limit(made))]
    clock.now += 0.1
    for start in began:
        ending(made, start)
        made.end()


def busy(made, began, wait=None):
    made.failed(began, Fault.BUSY, wait, "HTTP 429")


def away(made, began):
    made.failed(began, Fault.AWAY, None, "refused")


def failed(made, began):
    made.failed(began, Fault.FAILED, None, "HTTP 500")


def answered(made, began):
    made.answered()


def test_all_calls_may_start_at_first(clock):
    made = pacer(clock, most=8)
    assert (limit(made), made.wait(), made.left()) == (8, 0.0, None)


def test_calls_that_are_refused_together_halve_the_limit_once(clock):
    made = pacer(clock)
    round_of(made, clock, busy, calls=4)
    made.answered()
    assert limit(made) == 32


def test_the_limit_never_falls_below_one(clock):
    made = pacer(clock, most=4)
    for _ in range(9):
        round_of(made, clock, busy, calls=1)
        clock.now += 60
    assert limit(made) == 1


def test_the_limit_rises_by_one_with_each_round_of_answers_up_to_the_most(clock):
    made = pacer(clock, most=16)
    round_of(made, clock, busy, calls=2)
    limits = []
    for _ in range(12):
        clock.now += 60
        limits.append(limit(made))
        round_of(made, clock, answered)
    assert limits[0] == 8 and limits[-1] == 16
    assert all(0 <= later - sooner <= 1 for sooner, later in itertools.pairwise(limits))


def test_a_wait_that_the_service_names_holds_for_all_calls(clock):
    made = pacer(clock)
    round_of(made, clock, lambda made, began: busy(made, began, 7.5), calls=3)
    made.answered()  # in flight since before
    assert made.wait() == pytest.approx(7.5)
    clock.now += 7.5
    assert made.wait() == 0.0


def test_waits_double_from_the_backoff_to_the_longest_and_begin_anew_after_an_answer(clock):
    made, waits = pacer(clock, longest=5.0), []
    for _ in range(5):
        round_of(made, clock, away, calls=1)
        waits.append(made.wait())
        clock.now += 60
    for wait, full in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert full / 2 <= wait <= full
    round_of(made, clock, answered, calls=1)
    round_of(made, clock, away, calls=1)
    assert made.wait() <= 1


def test_calls_that_fail_together_are_one_wait(clock):
    made = pacer(clock)
    round_of(made, clock, away)
    assert 0.5 <= made.wait() <= 1


def test_single_failures_that_may_be_the_requests_hold_up_nobody(clock):
    made = pacer(clock)
    for _ in range(20):
        round_of(made, clock, failed, calls=2)
        round_of(made, clock, answered, calls=1)
    assert (made.wait(), limit(made)) == (0.0, 64)


@pytest.mark.parametrize("ending", [away, failed, busy])
def test_while_nothing_answers_one_call_at_a_time_tries(clock, ending):
    made = pacer(clock)
    round_of(made, clock, ending)
    clock.now += 60
    assert limit(made) == 1
    assert "no answer for 60 s" in made.status() and "giving up in 540 s" in made.status()


def test_after_an_outage_the_limit_doubles_with_each_round_until_it_is_what_it_was(clock):
    made, limits = pacer(clock), []
    round_of(made, clock, away)
    clock.now += 60
    for _ in range(7):
        limits.append(limit(made))
        round_of(made, clock, answered)
    assert limits == [1, 2, 4, 8, 16, 32, 64]


def test_patience_ends_after_its_seconds_without_any_answer(clock):
    made = pacer(clock, patience=30.0)
    round_of(made, clock, away, calls=1)
    clock.now += 20
    assert made.left() == pytest.approx(10)
    made.answered()
    assert made.left() is None
    round_of(made, clock, away, calls=1)
    clock.now += 31
    assert made.left() < 0
    assert made.given_up() == "no answer for 31 s (refused)"


def test_a_wait_longer_than_patience_is_given_up_at_once(clock):
    made = pacer(clock, patience=30.0)
    round_of(made, clock, lambda made, began: busy(made, began, 3600.0), calls=1)
    made.answered()
    assert made.left() == 0.0
    assert made.given_up() == "the service asks to wait 3,600 s (HTTP 429)"


def test_the_status_tells_calls_in_flight_the_limit_and_a_wait(clock):
    made = pacer(clock, most=8)
    made.begin()
    assert made.status() == "1 in flight, limit 8"
    busy(made, clock.now, 20.0)
    assert made.status() == "1 in flight, limit 4, waiting 20 s (HTTP 429)"
