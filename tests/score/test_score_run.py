"""Scoring stage on a ledger small enough to compute by hand."""

import contextlib
import io
import json
import sqlite3

import pytest
from rich.console import Console

from mcr_jax import completion, config
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.score import results as scoring
from mcr_jax.score.table import table
from mcr_jax.score.verify import verify
from mcr_jax.workdir import Workdir

JUDGE = "offline"
ANSWER = completion.render("because of it", "glass fever")
R, W, U = True, False, None  # right, wrong, no verdict

# What five samples of each of four cases do, per model: a judge's verdict on an answer, or a kind.
BASE = {
    "c1": [R, W, W, W, W],
    "c2": ["no_answer", "TRUNCATED", "prompt_too_long", W, W],
    "c3": [R, U, "BLOCKED", "INFRA_ERROR", "missing"],
    "c4": ["missing"] * 5,
}
SFT = {
    "c1": [R, R, R, W, W],
    "c2": [W, W, W, W, R],
    "c3": [R, R, R, R, R],
    "c4": [R, R, R, R, R],
}
RECALLS = {
    "base": {"c1": [R, W, W, W], "c3": U},  # c2's first sample has no trace, c4 no completion
    "sft": {"c1": [R, R, W, W], "c2": [W, W], "c3": [R, R, R, R], "c4": [R, R]},
}


def _config(**score):
    c = config.default()
    c.name = "by hand"
    c.sample.n = 5
    c.score.resamples = 400
    c.score.update(score)
    return config.check(c, "test")


def _rows(model, plan):
    """Yields (row, attempt fields or None) of completions, then of verdicts."""
    text = {"no_answer": "", "TRUNCATED": "<think>cut", "prompt_too_long": ""}
    for case, samples in plan.items():
        for index, what in enumerate(samples):
            row = RowKey(stage="sample", case=case, model=model, sample=index)
            if what == "missing":
                yield row, None
            elif isinstance(what, str):
                outcome = Outcome.OK if what == "no_answer" else Outcome(what)
                yield row, {"outcome": outcome, "text": text.get(what, "")}
            else:
                yield row, {"outcome": Outcome.OK, "text": ANSWER}
                judged = RowKey(
                    stage="diagnosis", case=case, model=model, sample=index, judge=JUDGE
                )
                same = {"outcome": Outcome.OK, "verdict": {"same": what}}
                same["text"] = json.dumps(same["verdict"])
                yield judged, {"outcome": Outcome.INFRA_ERROR} if what is U else same
    for case, found in RECALLS[model].items():
        row = RowKey(stage="reasons", case=case, model=model, sample=0, judge=JUDGE)
        if found is U:
            yield row, {"outcome": Outcome.MALFORMED, "text": "{"}
        else:
            verified = [flag and position == 0 for position, flag in enumerate(found)]
            quotes = [["because"] if flag else [] for flag in found]
            verdict = {"found": found, "verified": verified, "quotes": quotes}
            yield row, {"outcome": Outcome.OK, "verdict": verdict}


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with Ledger(workdir.ledger) as ledger:
        for model, plan in (("base", BASE), ("sft", SFT)):
            rows = list(_rows(model, plan))
            for stage in ("sample", "diagnosis", "reasons"):
                scope = Scope(stage, model, "" if stage == "sample" else JUDGE)
                ledger.declare(scope, {row: "d" for row, _ in rows if row.stage == stage})
            for row, fields in rows:
                if fields is not None:
                    ledger.write(Attempt(row=row, digest="d", attempt=1, **fields))
    workdir.note("data", {"dataset": "fictional", "cases": 4})
    workdir.note("judge", {"name": JUDGE, "identity": "rules/1"})
    return workdir


def test_every_number_is_the_one_worked_out_by_hand(workdir):
    results = scoring.score(workdir, _config())
    base, sft = results["models"]["base"], results["models"]["sft"]
    accuracy = base["accuracy"]["1"]  # c1 1/5, c2 0/5, c3 1/1 of 1 resolved, c4 unresolved
    assert accuracy["value"] == pytest.approx((0.2 + 0 + 1) / 3)
    assert (accuracy["resolved"], accuracy["total"]) == (3, 4)
    assert accuracy["worst"] == pytest.approx((0.2 + 0 + 0.2 + 0) / 4)
    assert accuracy["best"] == pytest.approx((0.2 + 0.2 + 1 + 1) / 4)
    accuracy = base["accuracy"]["5"]  # c1 right, the others lack five resolved
    assert (accuracy["value"], accuracy["worst"], accuracy["best"]) == (1.0, 0.25, 1.0)
    assert (accuracy["resolved"], accuracy["total"]) == (1, 4)
    assert "10" not in base["accuracy"]
    assert sft["accuracy"]["1"]["value"] == pytest.approx((0.6 + 0.2 + 1 + 1) / 4)
    assert sft["accuracy"]["5"]["value"] == 1.0
    assert sft["accuracy"]["5"]["low"] == pytest.approx(0.025 ** (1 / 4))
    recall = base["reasoning_recall"]  # c1 1/4, c2 0 without a judge, c3 malformed, c4 missing
    assert (recall["value"], recall["resolved"], recall["total"]) == (0.125, 2, 4)
    assert recall["worst"] == pytest.approx(0.25 / 4)
    assert recall["best"] == pytest.approx(2.25 / 4)
    assert sft["reasoning_recall"]["value"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert sft["reasoning_recall_verified"]["value"] == pytest.approx((0.25 + 0 + 0.25 + 0.5) / 4)


def test_outcomes_partition_the_completions(workdir):
    outcomes = scoring.score(workdir, _config())["models"]["base"]["outcomes"]
    assert outcomes == {
        "OK": 9,
        "no_answer": 1,
        "TRUNCATED": 1,
        "prompt_too_long": 1,
        "BLOCKED": 1,
        "INFRA_ERROR": 1,
        "missing": 6,
    }
    assert sum(outcomes.values()) == 20


def test_comparisons_pair_the_cases_resolved_for_both(workdir):
    comparisons = {c["metric"]: c for c in scoring.score(workdir, _config())["comparisons"]}
    assert list(comparisons) == ["accuracy@1", "accuracy@5", "reasoning_recall"]
    at_1 = comparisons["accuracy@1"]  # c1 +0.4, c2 +0.2, c3 0; c4 is unresolved for base
    assert (at_1["a"], at_1["b"], at_1["cases"]) == ("base", "sft", 3)
    assert at_1["difference"] == pytest.approx(0.2)
    assert at_1["p_value"] == 0.5  # of four sign patterns, ++ and -- are as extreme
    assert at_1["low"] <= 0.2 <= at_1["high"]
    assert comparisons["accuracy@5"]["difference"] == 0.0  # c1 alone has five resolved
    assert comparisons["reasoning_recall"]["difference"] == pytest.approx((0.25 + 0) / 2)


def test_judge_and_data_come_from_the_manifest_and_verdicts_are_counted(workdir):
    results = scoring.score(workdir, _config())
    assert results["data"] == {"dataset": "fictional", "cases": 4}
    assert results["judge"] == {
        "name": JUDGE,
        "identity": "rules/1",
        "verdicts": {
            "diagnosis": {"wanted": 29, "settled": 28},
            "reasons": {"wanted": 6, "settled": 5},
        },
        "versions": {"diagnosis": {"not reported": 28}, "reasons": {"not reported": 5}},
        "usage": {
            **dict.fromkeys(("requests", "prompt_tokens", "output_tokens", "cached_tokens"), 0),
            "dollars": 0.0,
        },
    }
    assert results["schema"] == 1
    assert "not for patient care" in results["notice"]


def test_what_the_manifest_says_of_another_judge_is_not_told_of_this_one(workdir):
    workdir.note("judge", {"name": "gemini:another", "identity": "gemini/another"})
    judge = scoring.score(workdir, _config())["judge"]
    assert judge["name"] == JUDGE and "identity" not in judge


def test_scores_hold_each_case(workdir):
    scoring.score(workdir, _config())
    case = workdir.read_json(workdir.scores)["models"]["base"]["c3"]
    assert case["kinds"] == ["OK", "OK", "BLOCKED", "INFRA_ERROR", "missing"]
    assert case["right"] == [True, None, None, None, None]
    assert case["recall"] == case["recall_verified"] == [None]
    assert case["metrics"]["accuracy@1"] == 1.0
    assert case["metrics"]["accuracy@5"] is None


def _say(workdir, texts):
    """Has the first samples of sft's case c4 say other texts, with their verdicts kept."""
    with Ledger(workdir.ledger) as ledger:
        for sample, text in enumerate(texts):
            row = RowKey(stage="sample", case="c4", model="sft", sample=sample)
            ledger.write(Attempt(row=row, digest="d", attempt=2, outcome=Outcome.OK, text=text))


OTHER_FORMS = ["<think>t</think>\\boxed{glass fever}", "<think>t</think>Diagnosis: glass fever"]


@pytest.mark.promise("The report counts which rule read the answers of each model")
def test_the_rules_that_read_the_answers_are_counted_per_model_and_kept_per_sample(workdir):
    _say(workdir, OTHER_FORMS)
    results = scoring.score(workdir, _config())
    assert results["config"]["answer"] == "lenient"
    assert results["models"]["sft"]["answers"] == {"strict": 18, "boxed": 1, "line": 1}
    assert results["models"]["base"]["answers"] == {"strict": 9}
    cases = workdir.read_json(workdir.scores)["models"]
    assert cases["sft"]["c4"]["rules"] == ["boxed", "line", "strict", "strict", "strict"]
    assert cases["base"]["c2"]["rules"] == [None, None, None, "strict", "strict"]
    assert "Answers of sft, by the rule that read them: 18 strict, 1 boxed, 1" in _printed(results)


def test_an_answer_that_strict_reading_does_not_read_is_none_and_wrong(workdir):
    _say(workdir, OTHER_FORMS)
    results = scoring.score(workdir, _config(answer="strict"))
    assert results["config"]["answer"] == "strict"
    assert results["models"]["sft"]["answers"] == {"strict": 18}
    assert results["models"]["sft"]["outcomes"] == {"OK": 18, "no_answer": 2}
    case = workdir.read_json(workdir.scores)["models"]["sft"]["c4"]
    assert case["right"] == [False, False, True, True, True]


def test_an_answer_that_is_read_now_and_was_not_judged_is_unresolved(workdir):
    _say(workdir, OTHER_FORMS)
    with Ledger(workdir.ledger) as ledger:  # as judging left it under strict reading
        scope = Scope("diagnosis", "sft", JUDGE)
        rows = [row for row in ledger.answers(scope) if row.case != "c4" or row.sample > 1]
        ledger.declare(scope, dict.fromkeys(rows, "d"))
    results = scoring.score(workdir, _config())
    assert results["judge"]["verdicts"]["diagnosis"] == {"wanted": 29, "settled": 26}
    case = workdir.read_json(workdir.scores)["models"]["sft"]["c4"]
    assert case["right"] == [None, None, True, True, True]


def _versions(workdir, version, stage="diagnosis", case="c1"):
    """Gives the verdicts on sft's completions of one case a version, and all others another."""
    for_all = f"UPDATE attempts SET model_version = 'v1' WHERE judge = '{JUDGE}'"
    of_case = "UPDATE attempts SET model_version = ? WHERE stage = ? AND case_fingerprint = ?"
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        db.execute(for_all)
        db.execute(f"{of_case} AND model = 'sft'", (version, stage, case))


def test_verdicts_of_one_version_are_counted_and_pooled(workdir):
    _versions(workdir, "v1")
    judge = scoring.score(workdir, _config())["judge"]
    assert judge["versions"] == {"diagnosis": {"v1": 28}, "reasons": {"v1": 5}}
    assert "note" not in judge


@pytest.mark.promise("nothing is pooled until `judge.version` names the version that counts")
def test_several_versions_of_the_judge_give_counts_and_bounds_but_no_value(workdir):
    _versions(workdir, "v2")
    results = scoring.score(workdir, _config())
    assert results["judge"]["versions"]["diagnosis"] == {"v1": 23, "v2": 5}
    assert "set config.judge.version" in results["judge"]["note"]
    for model in results["models"].values():
        recalls = [model["reasoning_recall"], model["reasoning_recall_verified"]]
        for metric in (*model["accuracy"].values(), *recalls):
            assert [metric[n] for n in ("value", "low", "high", "resolved")] == [None] * 3 + [0]
            assert 0 <= metric["worst"] <= metric["best"] <= 1
    assert {c["difference"] for c in results["comparisons"]} == {None}
    scores = workdir.read_json(workdir.scores)["models"]["sft"]["c2"]
    assert scores["right"] == [None] * 5 and set(scores["metrics"].values()) == {None}
    printed = " ".join(_printed(results).split())
    assert "unresolved" in printed and "several versions (v1: 28, v2: 5 verdicts)" in printed
    assert verify(workdir, _config(), ()).differences == []


def test_verdicts_without_a_version_are_not_taken_for_those_of_another(workdir):
    _versions(workdir, "")
    results = scoring.score(workdir, _config())
    assert results["judge"]["versions"]["diagnosis"] == {"not reported": 5, "v1": 23}
    assert "v1: 28, not reported: 5 verdicts" in results["judge"]["note"]
    assert results["models"]["sft"]["accuracy"]["1"]["value"] is None


def test_the_named_version_alone_counts_and_the_rest_is_unresolved(workdir):
    _versions(workdir, "v2")
    c = _config().copy_and_resolve_references()
    c.unlock()
    c.judge.version = "v1"
    results = scoring.score(workdir, c)
    at_1 = results["models"]["sft"]["accuracy"]["1"]
    assert (at_1["value"], at_1["resolved"]) == (pytest.approx((0.2 + 1 + 1) / 3), 3)
    assert results["judge"]["version"] == "v1"
    assert "5 of 33 verdicts are not of config.judge.version=v1" in results["judge"]["note"]
    assert results["judge"]["verdicts"]["diagnosis"] == {"wanted": 29, "settled": 23}


def test_scoring_again_gives_the_same_bytes(workdir):
    scoring.score(workdir, _config())
    first = workdir.results.read_bytes(), workdir.scores.read_bytes()
    scoring.score(workdir, _config())
    assert (workdir.results.read_bytes(), workdir.scores.read_bytes()) == first


def test_nothing_resolved_is_null_and_never_zero(workdir):
    with Ledger(workdir.ledger) as ledger:
        for stage in ("diagnosis", "reasons"):
            ledger.declare(Scope(stage, "sft", JUDGE), {})
    results = scoring.score(workdir, _config())
    at_5 = results["models"]["sft"]["accuracy"]["5"]
    assert [at_5[key] for key in ("value", "low", "high", "resolved")] == [None, None, None, 0]
    assert (at_5["worst"], at_5["best"]) == (0.0, 1.0)
    compared = results["comparisons"][0]
    assert compared["difference"] is compared["p_value"] is None
    assert "unresolved" in _printed(results)


def test_verify_is_content_with_what_score_wrote(workdir):
    scoring.score(workdir, _config())
    assert verify(workdir, _config(), ()).differences == []


def test_verify_is_content_with_results_of_a_version_that_did_not_count_equal_cases(workdir):
    results = scoring.score(workdir, _config())
    for entry in results["comparisons"]:
        del entry["equal"]
    workdir.write_json(workdir.results, results)
    assert verify(workdir, _config(), ()).differences == []


def test_verify_names_every_tampered_number(workdir):
    results = scoring.score(workdir, _config())
    results["models"]["sft"]["accuracy"]["1"]["value"] += 0.01
    results["comparisons"][0]["p_value"] = 0.001
    del results["models"]["base"]["outcomes"]["BLOCKED"]
    workdir.write_json(workdir.results, results)
    lines = verify(workdir, _config(), ()).differences
    assert len(lines) == 3
    assert lines[0].startswith("results.json: comparisons[0].p_value is 0.001, recomputed 0.5")
    assert "outcomes.BLOCKED is 'absent', recomputed 1" in lines[1]
    assert "models.sft.accuracy.1.value is 0.71" in lines[2]


def test_verify_notices_a_changed_ledger(workdir):
    scoring.score(workdir, _config())
    with Ledger(workdir.ledger) as ledger:
        row = RowKey(stage="diagnosis", case="c1", model="base", sample=1, judge=JUDGE)
        verdict = {"outcome": Outcome.OK, "verdict": {"same": True}, "text": '{"same": true}'}
        ledger.write(Attempt(row=row, digest="d", attempt=2, **verdict))
    lines = verify(workdir, _config(), ()).differences
    assert any("models.base.accuracy.1.value" in line for line in lines)
    assert any(line.startswith("scores.json: models.base.c1.right[1]") for line in lines)


def test_verdicts_on_earlier_completions_are_not_taken_for_later_ones(workdir):
    with Ledger(workdir.ledger) as ledger:
        rows = dict.fromkeys(ledger.answers(Scope("sample", "sft")), "d")
        again = RowKey(stage="sample", case="c4", model="sft", sample=0)
        ledger.declare(Scope("sample", "sft"), {**rows, again: "another prompt"})
        fields = {"outcome": Outcome.OK, "text": ANSWER}
        ledger.write(Attempt(row=again, digest="another prompt", attempt=1, **fields))
    scoring.score(workdir, _config())
    cases = workdir.read_json(workdir.scores)["models"]["sft"]
    assert cases["c4"]["right"] == [None, True, True, True, True]
    assert cases["c4"]["recall"] == [None]
    assert cases["c3"]["right"] == [True] * 5


def test_a_model_without_completions_is_an_error_that_names_it(workdir):
    c = _config().copy_and_resolve_references()
    c.unlock()
    c.sample.models = ("base", "typo=sft")
    with pytest.raises(McrError, match="no completions of model 'typo'; run `mcr sample`"):
        scoring.score(workdir, c)


def test_results_hold_neither_time_nor_machine(workdir):
    text = json.dumps(scoring.score(workdir, _config()))
    assert not any(
        word in text for word in ("seconds", "created", "environment", str(workdir.path))
    )


def _printed(results, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(results))
    return console.export_text()


def test_the_table_shows_values_intervals_coverage_difference_and_p(workdir):
    text = _printed(scoring.score(workdir, _config()))
    for part in ("accuracy@1", "0.400", "0.700", "3 of 4 cases", "0.10–0.60", "+0.200", "0.500"):
        assert part in text
    assert "[+0.000, +0.400]" in text
    assert "not for patient care" in text


def test_the_table_of_one_model_keeps_its_title_on_a_line_and_speaks_of_no_pair(workdir):
    results = scoring.score(workdir, _config())
    results["models"].pop("base")
    results["comparisons"] = []
    results["config"]["name"] = "demo: a fictional clinic"
    text = _printed(results)
    assert "demo: a fictional clinic: mean over cases [95 % interval], judge offline" in text
    assert "aired" not in text and "unadjusted" not in text


def test_the_table_prints_names_that_look_like_markup(workdir):
    results = scoring.score(workdir, _config())
    results["config"]["name"] = "[bold]run[/bold]"
    assert "[bold]run[/bold]" in _printed(results)
