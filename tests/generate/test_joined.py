"""Completions and verdicts are joined by row, and read once until the ledger changes."""

import pytest

from mcr_jax import config as configs
from mcr_jax.completion import render
from mcr_jax.generate import joined
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope

JUDGE = "offline"
ROW = RowKey(stage="sample", case="c1", model="sft", sample=0)


@pytest.fixture
def config():
    config = configs.default()
    config.sample.models, config.judge.name = ("sft",), JUDGE
    return config


@pytest.fixture
def ledger(tmp_path):
    """One completion without a verdict."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.declare(Scope("sample", "sft"), {ROW: "d"})
        ledger.declare(Scope("diagnosis", "sft", JUDGE), {ROW.judged("diagnosis", JUDGE): "d"})
        ledger.write(attempt(ROW, text=render("Violet nails.", "rime")))
        yield ledger


def attempt(row, **changes):
    return Attempt(**{"row": row, "digest": "d", "attempt": 1, "outcome": Outcome.OK} | changes)


def test_an_unchanged_ledger_is_joined_once(ledger, config):
    assert joined.join(ledger, config) is joined.join(ledger, config)


@pytest.mark.parametrize("another", [False, True], ids=["same connection", "another connection"])
def test_a_verdict_that_was_written_since_is_in_the_next_join(ledger, config, another):
    (before,) = joined.join(ledger, config).models["sft"]
    with Ledger(ledger.path) as other:
        verdict = attempt(ROW.judged("diagnosis", JUDGE), verdict={"same": True})
        (other if another else ledger).write(verdict)
        (after,) = joined.join(ledger, config).models["sft"]
    assert before.diagnosis is None and after.diagnosis.verdict == {"same": True}
    assert after.said is before.said  # parsed once


def test_another_config_is_joined_anew(ledger, config):
    (all_,) = joined.join(ledger, config).models["sft"]
    config.judge.recall_samples = 0
    assert joined.join(ledger, config).models["sft"] is not all_
    config.sample.models = ()
    assert joined.join(ledger, config).models == {}


def test_a_completion_is_parsed_once_and_another_text_anew(ledger, config):
    (stored,) = ledger.answers(Scope("sample", "sft")).values()
    first = joined.read_once(ledger, stored, "lenient")
    assert first.answer == "rime" and joined.read_once(ledger, stored, "lenient") is first
    for other in ("violet rime", "blue rime"):  # not yet written: both have id 0
        unwritten = attempt(ROW, text=render("Violet nails.", other))
        assert joined.read_once(ledger, unwritten, "lenient").answer == other
    assert joined.read_once(ledger, None, "lenient") is None
