"""Every verdict is parsed again from its reply, which reveals changes made by hand."""

import contextlib
import json
import sqlite3

import pytest

from mcr_jax import completion, config, prompts
from mcr_jax.cases import Case
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.score.results import score
from mcr_jax.score.verify import verify
from mcr_jax.workdir import Workdir

JUDGE = "offline"
CASE = Case(
    case_prompt="A lamplighter came with humming knees.",
    diagnostic_reasoning="1. The humming knees suggest it.\n2. There is no frost on the tongue.",
    final_diagnosis="Harrow fever",
)
TRACE = "His humming knees suggest it, and the tongue is clear."
REPLIES = {
    "diagnosis": '{"same": false}',
    "reasons": json.dumps(
        [
            {"number": 1, "quotes": ["his humming knees suggest it"]},
            {"number": 2, "quotes": ["nowhere is there any frost"]},
        ]
    ),
}


def _config(**judge):
    c = config.default()
    c.sample.models = ("base",)
    c.sample.n = 1
    c.score.resamples = 50
    c.judge.update(judge)
    return config.check(c, "test")


@pytest.fixture
def workdir(tmp_path):
    """One completion, judged and scored."""
    workdir = Workdir(tmp_path)
    row = RowKey(stage="sample", case=CASE.fingerprint, model="base", sample=0)
    prompt = prompts.load(reasons.PROMPT)
    verdicts = {
        "diagnosis": diagnosis.parse(None, REPLIES["diagnosis"]),
        "reasons": reasons.parse(reasons.request("", CASE, TRACE, prompt), REPLIES["reasons"]),
    }
    with Ledger(workdir.ledger) as ledger:
        said = {"outcome": Outcome.OK, "text": completion.render(TRACE, "Another fever")}
        attempts = [Attempt(row=row, digest="d", attempt=1, **said)]
        for stage, text in REPLIES.items():
            of_stage = {"outcome": Outcome.OK, "text": text, "verdict": verdicts[stage]}
            of_row = row.judged(stage, JUDGE)
            attempts.append(Attempt(row=of_row, digest="d", attempt=1, **of_stage))
        for attempt in attempts:
            scope = Scope(attempt.row.stage, "base", attempt.row.judge)
            ledger.declare(scope, {attempt.row: "d"})
        ledger.write_all([attempt] for attempt in attempts)
    score(workdir, _config())
    return workdir


def _plant(workdir, stage, **columns):
    """Writes into the rows of a stage, and scores as if nothing had happened."""
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        for name, value in columns.items():
            db.execute(f"UPDATE attempts SET {name} = ? WHERE stage = ?", (value, stage))
    score(workdir, _config())


def test_verdicts_that_follow_from_their_replies_are_agreed_with(workdir):
    assert verify(workdir, _config(), [CASE]) == ([], 2, 0)


@pytest.mark.promise("`mcr verify` parses every stored reply again.")
@pytest.mark.parametrize(
    ("models", "now"),
    [(["gemini:g"], "judge gemini:g"), ([JUDGE, "b=gemini:g"], "judges offline, b")],
)
def test_results_of_other_judges_are_one_line_and_no_differences(workdir, models, now):
    with pytest.raises(McrError, match=rf"is of judge offline, and the config now names {now}: "):
        verify(workdir, _config(models=models), [CASE])


def test_a_planted_diagnosis_is_found_though_all_numbers_agree(workdir):
    _plant(workdir, "diagnosis", verdict='{"same": true}')
    (line,) = verify(workdir, _config(), [CASE]).differences
    assert line.startswith("ledger row 2, diagnosis of case ")
    assert CASE.fingerprint[:12] in line and "model base, sample 0" in line
    assert "the verdict is {'same': True}, its reply gives {'same': False}" in line


def test_a_planted_verification_of_a_quote_is_found(workdir):
    quotes = [["his humming knees suggest it"], ["nowhere is there any frost"]]
    planted = {"found": [True, True], "verified": [True, True], "quotes": quotes}
    _plant(workdir, "reasons", verdict=json.dumps(planted))
    (line,) = verify(workdir, _config(), [CASE]).differences
    assert line.startswith("ledger row 3, reasons of case ")


def test_a_verdict_whose_reply_is_none_is_found(workdir):
    _plant(workdir, "reasons", text="I would say yes")
    (line,) = verify(workdir, _config(), [CASE]).differences
    assert "its reply gives none: not JSON" in line


def test_a_reply_that_is_read_but_counts_as_malformed_is_found(workdir):
    _plant(workdir, "diagnosis", outcome="MALFORMED", verdict=None)
    (line,) = verify(workdir, _config(), [CASE]).differences
    assert "the verdict is None, its reply gives {'same': False}" in line


def test_verdicts_that_do_not_count_are_read_again_too(workdir):
    _plant(workdir, "diagnosis", verdict='{"same": true}', model_version="v1")
    _plant(workdir, "reasons", model_version="v2")
    assert len(verify(workdir, _config(), [CASE]).differences) == 1


def test_without_the_dataset_reasons_are_unchecked_and_diagnoses_are_not(workdir):
    _plant(workdir, "diagnosis", verdict='{"same": true}')
    found = verify(workdir, _config(), ())
    assert (len(found.differences), found.verdicts, found.unchecked) == (1, 1, 1)
