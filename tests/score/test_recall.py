"""Recall of a trace and of a case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import read
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.score import recall

ROW = RowKey(stage="reasons", case="c", model="m", sample=0, judge="offline")
TRACED = "<think>because</think><answer>A</answer>"


def _attempt(outcome=Outcome.OK, text="", **more):
    return Attempt(row=ROW, digest="d", attempt=1, outcome=outcome, text=text, **more)


def _read(attempt):
    return read(attempt, "lenient")


def _verdict(found, verified):
    return _attempt(verdict={"found": found, "verified": verified, "quotes": [[] for _ in found]})


def test_recall_is_the_share_of_statements_found():
    verdict = _verdict([True, True, False, True], [True, False, False, False])
    assert recall.sample_recall(_read(_attempt(text=TRACED)), verdict) == (0.75, 0.25)


def test_a_trace_without_an_answer_is_judged_like_any_other():
    for outcome in (Outcome.OK, Outcome.TRUNCATED):
        shares = recall.sample_recall(
            _read(_attempt(outcome, "<think>cut")), _verdict([True], [True])
        )
        assert shares == (1.0, 1.0)


@pytest.mark.parametrize(
    "attempt",
    [
        _attempt(text="<think> </think><answer>A</answer>"),
        _attempt(text=""),
        _attempt(Outcome.TRUNCATED, "<think>  "),
    ],
)
def test_an_empty_trace_has_recall_0_without_a_judge(attempt):
    assert recall.sample_recall(_read(attempt), None) == (0.0, 0.0)


@pytest.mark.parametrize(
    "attempt",
    [None, *(_attempt(o) for o in (Outcome.BLOCKED, Outcome.INFRA_ERROR, Outcome.PROMPT_TOO_LONG))],
)
def test_no_completion_is_unresolved(attempt):
    assert recall.sample_recall(_read(attempt), None) == (None, None)


@pytest.mark.parametrize(
    "verdict", [None, *(_attempt(o) for o in (Outcome.MALFORMED, Outcome.BLOCKED))]
)
def test_no_verdict_is_unresolved(verdict):
    assert recall.sample_recall(_read(_attempt(text=TRACED)), verdict) == (None, None)


@pytest.mark.parametrize("bad", [None, {}, {"found": []}, {"found": [True, None]}, {"found": [1]}])
def test_a_verdict_of_another_form_is_an_error(bad):
    where = r"ledger\.sqlite: row 7 is damaged \(reasons of case .*'found' per statement; .*id = 7"
    with pytest.raises(McrError, match=where):
        recall.sample_recall(_read(_attempt(text=TRACED)), _attempt(verdict=bad, id=7))


def test_a_case_is_the_mean_over_its_judged_samples():
    assert recall.case_recall([0.5, 1.0]) == (0.75, 0.75, 0.75)
    assert recall.case_recall([0.5, None]) == (0.5, 0.25, 0.75)
    assert recall.case_recall([None, None]) == (None, 0.0, 1.0)
    assert recall.case_recall([]) == (None, 0.0, 1.0)


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=9))
def test_a_case_lies_between_its_worst_and_its_best(shares):
    estimate = recall.case_recall(shares)
    assert 0 <= estimate.worst <= estimate.best <= 1
    if estimate.value is not None:
        assert estimate.worst <= estimate.value + 1e-12
        assert estimate.value <= estimate.best + 1e-12
