"""A run that diverges stops at that step, and says on which cases and what is still good."""

import json
import math

import pytest

from mcr_jax.errors import McrError
from mcr_jax.train.faults import Watch
from mcr_jax.workdir import Workdir

CASES = [f"{number:064x}" for number in range(5)]
SOUND = {"loss": 2.0, "gradient_norm": 1.0}


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def refused(watch, metrics, saved=None) -> str:
    with pytest.raises(McrError) as refusal:
        watch.check(7, metrics, lambda: CASES, saved)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.promise(
    "A loss that diverges stops with the step, the cases of its batch and the last good checkpoint."
)
@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_with_step_cases_and_checkpoint(workdir, name, value):
    message = refused(Watch(workdir, 100), SOUND | {name: value}, saved=5)
    assert f"the {name} at step 7 is {value}" in message
    assert CASES[0][:12] in message and "and 2 more" in message
    assert "the last good checkpoint is step 5" in message
    told = json.loads((workdir.path / "diverged.json").read_text())
    assert (told["step"], told["checkpoint"], told["cases"]) == (7, 5, CASES)
    assert told[name] == str(value)


def test_a_checkpoint_of_the_step_before_is_not_called_good(workdir):
    message = refused(Watch(workdir, 100), SOUND | {"loss": math.nan}, saved=6)
    assert "the checkpoint of step 6 holds the weights that failed" in message


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_stops(workdir, loss):
    watch = Watch(workdir, 100)
    watch.check_validation(3, 1.5)
    with pytest.raises(McrError, match=f"the validation loss after step 3 is {loss}"):
        watch.check_validation(3, loss)


def test_without_a_checkpoint_it_says_so(workdir):
    assert "no checkpoint is kept" in refused(Watch(workdir, 100), SOUND | {"loss": math.nan})


def test_a_loss_far_above_guessing_stops_once_it_was_lower(workdir):
    watch = Watch(workdir, 100)
    watch.check(1, SOUND, lambda: CASES, None)
    watch.check(2, SOUND | {"loss": 2 * math.log(100) - 0.01}, lambda: CASES, None)
    assert "the loss at step 7 is 9.3" in refused(watch, SOUND | {"loss": 2 * math.log(100) + 0.1})


def test_a_bad_start_may_become_better(workdir):
    watch = Watch(workdir, 100)
    for loss in (40.0, 45.0, 30.0, 20.0):
        watch.check(1, SOUND | {"loss": loss}, lambda: CASES, None)
    assert "loss" in refused(watch, SOUND | {"loss": 41.0})


def test_a_sound_run_asks_for_no_fingerprints(workdir):
    watch = Watch(workdir, 100)
    for step in range(5):
        watch.check(step, SOUND, lambda: pytest.fail("not needed"), None)
    assert not (workdir.path / "diverged.json").exists()
