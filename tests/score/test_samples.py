"""Scores of single samples: the kinds of completions, right answers, recall of a trace."""

import pytest

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import read
from mcr_jax.generate.ledger import Attempt, RowKey
from mcr_jax.score import samples

ROW = RowKey(stage="sample", case="c", model="m", sample=0)
JUDGED = ROW.judged("reasons", "offline")
TRACED = "<think>because</think><answer>A</answer>"


def _attempt(outcome=Outcome.OK, text="", *, row=ROW, **more):
    return Attempt(row=row, digest="d", attempt=1, outcome=outcome, text=text, **more)


def _read(attempt):
    return read(attempt, "lenient")


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
    assert samples.kind(outcome, _read(_attempt(outcome, text))) == kind
    assert kind in samples.KINDS


def test_no_attempt_is_missing_and_unresolved():
    assert samples.kind(None, None) == "missing"
    assert samples.right("missing", _attempt(verdict={"same": True})) is None


@pytest.mark.parametrize("kind", ["no_answer", "TRUNCATED"])
def test_the_models_own_failures_are_wrong_without_a_judge(kind):
    assert samples.right(kind, None) is False


@pytest.mark.promise("An error of a judge or a network is never counted as a wrong answer.")
@pytest.mark.parametrize(
    "kind", ["BLOCKED", "MALFORMED", "INFRA_ERROR", "prompt_too_long", "missing"]
)
def test_what_is_not_the_models_doing_is_unresolved(kind):
    assert samples.right(kind, _attempt(verdict={"same": True})) is None


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
def test_an_answer_without_a_verdict_is_unresolved(outcome):
    assert samples.right("OK", None) is None
    assert samples.right("OK", _attempt(outcome)) is None


@pytest.mark.parametrize(
    "verdict", [None, "yes", {}, {"same": None}, {"same": "true"}, {"same": 1}]
)
def test_a_verdict_of_another_form_is_an_error_and_never_a_number(verdict):
    with pytest.raises(McrError, match="verdict"):
        samples.right("OK", _attempt(verdict=verdict))


def _verdict(found, verified):
    return _attempt(
        row=JUDGED, verdict={"found": found, "verified": verified, "quotes": [[] for _ in found]}
    )


def test_recall_is_the_share_of_statements_found():
    verdict = _verdict([True, True, False, True], [True, False, False, False])
    assert samples.sample_recall(_read(_attempt(text=TRACED)), verdict) == (0.75, 0.25)


def test_a_trace_without_an_answer_is_judged_like_any_other():
    for outcome in (Outcome.OK, Outcome.TRUNCATED):
        shares = samples.sample_recall(
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
    assert samples.sample_recall(_read(attempt), None) == (0.0, 0.0)


@pytest.mark.parametrize(
    "attempt",
    [None, *(_attempt(o) for o in (Outcome.BLOCKED, Outcome.INFRA_ERROR, Outcome.PROMPT_TOO_LONG))],
)
def test_no_completion_is_unresolved(attempt):
    assert samples.sample_recall(_read(attempt), None) == (None, None)


@pytest.mark.parametrize(
    "verdict", [None, *(_attempt(o) for o in (Outcome.MALFORMED, Outcome.BLOCKED))]
)
def test_no_verdict_is_unresolved(verdict):
    assert samples.sample_recall(_read(_attempt(text=TRACED)), verdict) == (None, None)


@pytest.mark.parametrize("bad", [None, {}, {"found": []}, {"found": [True, None]}, {"found": [1]}])
def test_a_verdict_of_another_form_is_an_error(bad):
    where = r"ledger\.sqlite: row 7 is damaged \(reasons of case .*'found' per statement; .*id = 7"
    with pytest.raises(McrError, match=where):
        samples.sample_recall(_read(_attempt(text=TRACED)), _attempt(verdict=bad, id=7, row=JUDGED))
