"""accuracy@k against its definition, and what each kind of completion counts as."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import read
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.score import accuracy

ROW = RowKey(stage="sample", case="c", model="m", sample=0)


def _attempt(outcome=Outcome.OK, text="", verdict=None):
    return Attempt(row=ROW, digest="d", attempt=1, outcome=outcome, text=text, verdict=verdict)


@pytest.mark.parametrize("n", range(1, 8))
def test_accuracy_at_k_is_the_share_of_subsets_that_hold_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(accuracy.accuracy_at_k(n, c, k), share, rel_tol=1e-15)


def test_accuracy_at_k_neither_overflows_nor_cancels_with_many_samples():
    assert accuracy.accuracy_at_k(100_000, 1, 10) == 10 / 100_000
    assert accuracy.accuracy_at_k(1000, 400, 1) == 0.4
    assert accuracy.accuracy_at_k(1000, 400, 601) == 1.0


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_accuracy_at_k_refuses_what_has_no_meaning(n, c, k):
    with pytest.raises(ValueError, match="no accuracy@"):
        accuracy.accuracy_at_k(n, c, k)


samples = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12)


@given(samples, st.integers(1, 12))
def test_a_case_lies_between_its_worst_and_its_best(rights, k):
    estimate = accuracy.case_accuracy(rights, k)
    if sum(right is not None for right in rights) < k:
        assert estimate == (None, 0.0, 1.0)
    else:
        assert estimate.worst <= estimate.value <= estimate.best


@given(samples, st.integers(1, 12), st.data())
def test_worst_and_best_hold_however_the_unresolved_turn_out(rights, k, data):
    truth = [data.draw(st.booleans()) if right is None else right for right in rights]
    if k <= len(truth):
        estimate = accuracy.case_accuracy(rights, k)
        assert estimate.worst <= accuracy.case_accuracy(truth, k).value <= estimate.best


@pytest.mark.parametrize(
    "outcome, text, kind",
    [
        (Outcome.OK, "<think>t</think><answer>A</answer>", "OK"),
        (Outcome.TRUNCATED, "<think>t</think><answer>A</answer> and then", "OK"),
        (Outcome.OK, "<think>t</think>", "no_answer"),
        (Outcome.OK, "<answer>A</answer><answer>B</answer>", "no_answer"),
        (Outcome.OK, "<answer>  </answer>", "no_answer"),
        (Outcome.OK, "", "no_answer"),
        (Outcome.TRUNCATED, "<think>t", "TRUNCATED"),
        (Outcome.PROMPT_TOO_LONG, "", "prompt_too_long"),
        (Outcome.BLOCKED, "", "BLOCKED"),
        (Outcome.MALFORMED, "", "MALFORMED"),
        (Outcome.INFRA_ERROR, "", "INFRA_ERROR"),
    ],
)
def test_kinds_of_completions(outcome, text, kind):
    assert accuracy.kind(outcome, read(_attempt(outcome, text), "lenient")) == kind
    assert kind in accuracy.KINDS


def test_no_attempt_is_missing_and_unresolved():
    assert accuracy.kind(None, None) == "missing"
    assert accuracy.right("missing", _attempt(verdict={"same": True})) is None


@pytest.mark.parametrize("kind", ["no_answer", "TRUNCATED"])
def test_the_models_own_failures_are_wrong_without_a_judge(kind):
    assert accuracy.right(kind, None) is False


@pytest.mark.promise("An error of a judge or a network is never counted as a wrong answer.")
@pytest.mark.parametrize(
    "kind", ["BLOCKED", "MALFORMED", "INFRA_ERROR", "prompt_too_long", "missing"]
)
def test_what_is_not_the_models_doing_is_unresolved(kind):
    assert accuracy.right(kind, _attempt(verdict={"same": True})) is None


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
def test_an_answer_without_a_verdict_is_unresolved(outcome):
    assert accuracy.right("OK", None) is None
    assert accuracy.right("OK", _attempt(outcome)) is None


@pytest.mark.parametrize(
    "verdict", [None, "yes", {}, {"same": None}, {"same": "true"}, {"same": 1}]
)
def test_a_verdict_of_another_form_is_an_error_and_never_a_number(verdict):
    with pytest.raises(McrError, match="verdict"):
        accuracy.right("OK", _attempt(verdict=verdict))
