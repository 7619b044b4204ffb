"""Judge of meaning: rejected samples are drawn again, and no request is sent twice."""

import json
import random
import sqlite3

import paraphrase
import pytest
from writers import CASES, PROMPT, Writer, config, good

from mcr_jax.data.traces import JOINED, STITCHED
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Reply
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.judges.offline import OfflineJudge
from mcr_jax.stitch.audit import joined
from mcr_jax.stitch.meaning import Meaning
from mcr_jax.stitch.summary import summarize
from mcr_jax.stitch.write import stitch

DISEASES = sorted({case.final_diagnosis for case in CASES})


class Judge(OfflineJudge):
    """The offline judge; `calls` is what it was asked, `says` may answer in its place."""

    def __init__(self, says=None):
        self.calls, self.says = [], says

    def generate(self, requests):
        for request in requests:
            case, _, sample, _ = request.key.split("/")
            self.calls.append((case, int(sample)))
            outcome = self.says(case, int(sample)) if self.says else None
            if outcome is None:
                yield from super().generate([request])
            else:
                yield Reply(key=request.key, index=0, text="", outcome=outcome, error="told to")


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as made:
        yield made


def run(ledger, says, judge=None, kind="offline", **changes):
    """Stitches with a judge; returns rows, writer and the judge at work."""
    made = config(judge=kind, **changes)
    writer = Writer(says)
    meaning = Meaning(ledger, made, judge or OfflineJudge(), "base")
    return stitch(ledger, made, CASES, writer, "base", PROMPT, judge=meaning), writer, meaning


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (paraphrase.dropped, "dropped"),
        (paraphrase.denied, "turned"),
        (paraphrase.turned, "dropped"),  # or turned, where the other words are many enough
        (paraphrase.early, "invented"),
        (paraphrase.reversed_order, "early"),
        (lambda case, rng: paraphrase.invented(case, rng, DISEASES), "invented"),
        (lambda case, rng: f"{joined(case)} Vellin was 112.", "added"),
    ],
)
def test_wrong_traces_of_fictional_cases_are_drawn_again_and_right_ones_kept(ledger, plant, fault):
    def says(case, index):
        return good(case) if index else plant(case, random.Random(case.fingerprint))

    rows, writer, _ = run(ledger, says)
    assert len(writer.asked) == len(set(writer.asked)) == 2 * len(CASES)
    for row, case in zip(rows, CASES, strict=True):
        assert fault in row.faults_first, row.faults_first
        assert (row.source, row.attempts, row.trace) == (STITCHED, 2, good(case))
        assert (row.faults, row.coverage) == ((), 1.0)


def test_the_judge_is_asked_about_every_first_sample_and_later_ones_that_pass_the_audit(ledger):
    judge = Judge()
    rows, _, _ = run(ledger, lambda case, index: "Too short." if index < 2 else good(case), judge)
    assert set(judge.calls) == {(case.fingerprint, n) for case in CASES for n in (0, 2)}
    assert len(judge.calls) == 2 * len(CASES)
    assert {(row.coverage_first, row.coverage) for row in rows} == {(0.0, 1.0)}
    assert {row.faults_first for row in rows} == {("short", "dropped", "invented")}


@pytest.mark.parametrize(
    ("plant", "source"), [(paraphrase.dropped, STITCHED), (paraphrase.denied, JOINED)]
)
def test_less_coverage_may_be_asked_for_but_nothing_turned(ledger, plant, source):
    rows, _, _ = run(ledger, lambda case, n: plant(case, random.Random(0)), coverage=0.5)
    assert {row.source for row in rows} == {source}


@pytest.mark.promise("none is requested twice")
def test_called_again_no_judge_is_asked_and_the_traces_are_the_same(ledger):
    def says(case, index):
        return good(case) if index else paraphrase.dropped(case, random.Random(0))

    first, _, _ = run(ledger, says)
    judge = Judge()
    again, writer, meaning = run(ledger, says, judge)
    assert (again, writer.asked, judge.calls) == (first, [], [])
    assert {row.judge for row in meaning.verdicts} == {"offline"}


def test_killed_while_judging_it_goes_on_with_what_is_open(ledger):
    class Killed(BaseException):
        pass

    def dies(case, sample):
        if case == CASES[5].fingerprint:
            raise Killed

    with pytest.raises(Killed):
        run(ledger, good, Judge(dies))
    judge = Judge()
    rows, writer, _ = run(ledger, good, judge)
    assert judge.calls == [(case.fingerprint, 0) for case in CASES[5:]] and not writer.asked
    assert all(row.source == STITCHED for row in rows)


def test_a_trace_without_a_verdict_is_not_trained_on_and_asked_about_once_per_run(ledger):
    lost = CASES[2].fingerprint
    judge = Judge(lambda case, sample: Outcome.BLOCKED if (case, sample) == (lost, 0) else None)
    rows, _, meaning = run(ledger, good, judge)
    assert judge.calls.count((lost, 0)) == 3  # config.judge.attempts
    assert [row.fingerprint for row in rows if row.faults_first] == [lost]
    (row,) = (row for row in rows if row.attempts == 2)
    assert row.faults_first == ("unjudged",) and row.coverage_first is None
    made = summarize(rows, lambda values: (0.0, 1.0), 0.95, meaning)
    assert made["first"]["coverage"]["cases"] == len(CASES) - 1
    assert made["distortion"]["first"]["unresolved"] == 1
    assert made["distortion"]["kept"]["unresolved"] == 0


def test_a_verdict_that_could_not_be_had_stops_it_with_one_line_and_keeps_the_others(ledger):
    lost = CASES[2].fingerprint
    judge = Judge(lambda case, sample: Outcome.INFRA_ERROR if case == lost else None)
    with pytest.raises(McrError, match=r"1 of 8 verdicts .* missing \(told to\).*mcr stitch"):
        run(ledger, good, judge)
    later = Judge()
    run(ledger, good, later)
    assert later.calls == [(lost, 0)]


def test_gemini_judges_and_what_it_calls_turned_is_drawn_as_another_sample(ledger, gemini):
    def says(case, index):
        return "\n".join(case.statements) if index else f"{joined(case)} Moss was felt."

    first = CASES[0]
    entries = [
        {"number": n, "verdict": "kept", "quote": s} for n, s in enumerate(first.statements, 1)
    ]
    entries[0]["verdict"] = "turned"
    added = ["Moss was felt", first.statements[-1], "it never said this"]
    gemini.then(gemini.says(json.dumps({"statements": entries, "added": added})))
    judge = Gemini("gemini-3.5-flash-lite", concurrency=1)
    rows, writer, meaning = run(ledger, says, judge, "gemini")
    assert writer.asked == [*((case.fingerprint, 0) for case in CASES), (first.fingerprint, 1)]
    assert len(gemini.calls) == len(CASES) + 1
    assert {row.source for row in rows} == {STITCHED}
    assert rows[0].faults_first == ("turned", "dropped", "invented") and rows[0].attempts == 2
    schema = gemini.calls[0].body["generationConfig"]["responseSchema"]
    word = schema["properties"]["statements"]["items"]["properties"]["verdict"]
    assert word["enum"] == ["kept", "turned", "missing"]
    assert {
        row.judge for row in ledger.answers(Scope("distortion", "base", meaning.about["judge"]))
    }

    made = summarize(rows, lambda values: (0.0, 1.0), 0.95, meaning)["distortion"]
    assert made["judge"] == "gemini:gemini-3.5-flash-lite" and len(made["prompt"]) == 64
    assert made["model_versions"] == ["loopback-1"]
    statements = sum(len(case.statements) for case in CASES)
    part = made["first"]
    assert part["statements"] == {"kept": statements - 1, "turned": 1, "missing": 0}
    assert (part["traces"], part["unresolved"], part["added"]) == (len(CASES), 0, 1)
    assert part["with_turned"]["value"] == part["with_added"]["value"] == 1 / len(CASES)
    assert made["kept"]["statements"] == {"kept": statements, "turned": 0, "missing": 0}


def test_a_damaged_verdict_is_one_line_that_names_its_row(ledger):
    run(ledger, good)
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE attempts SET verdict = '{\"verdicts\": 3}' WHERE stage = 'distortion'")
    db.close()
    with pytest.raises(McrError, match=r"row \d+ is damaged \(distortion .*`mcr stitch` reads"):
        run(ledger, good)
