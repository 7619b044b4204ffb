"""Two judges of the same completions: numbers against a recomputation, on a real ledger."""

import contextlib
import itertools
import sqlite3

import numpy as np
import pytest
from rich.console import Console

from mcr_jax import completion, config
from mcr_jax.bridge.figures import bridge
from mcr_jax.bridge.shown import table
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.score import results
from mcr_jax.workdir import Workdir

OLD, NEW = "openai:old-judge", "offline"
SAMPLES = 2


def _config():
    c = config.default()
    c.sample.models = ("before=openai:b", "after=openai:a")
    c.sample.n, c.judge.recall_samples, c.score.resamples = SAMPLES, 1, 400
    return config.check(c, "test")


def _ledger(path, verdicts, *, answers=None):
    """Writes completions and verdicts.

    Args:
      path: of the file.
      verdicts: model to judge to {(case, sample): same}, or a tuple of one per repeat, None
        without a verdict; [same, True] on the reasons.
      answers: model to {(case, sample): whether there is an answer}; True where absent.
    """
    ledger, attempts = Ledger(path), []
    for model, by_judge in verdicts.items():
        places = sorted(set().union(*by_judge.values(), (answers or {}).get(model, {})))
        rows = {RowKey(stage="sample", case=c, model=model, sample=s): (c, s) for c, s in places}
        ledger.declare(Scope("sample", model), dict.fromkeys(rows, "d"))
        for row, place in rows.items():
            has = (answers or {}).get(model, {}).get(place, True)
            text = completion.render("It hums.", "Sable gout") if has else "<think>It hums.</think>"
            attempts.append(Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK, text=text))
        for judge, given in by_judge.items():
            for stage in ("diagnosis", "reasons"):
                wanted = {}
                for place, says in given.items():
                    if stage == "reasons" and place[1]:
                        continue
                    for repeat, same in enumerate(says if isinstance(says, tuple) else (says,)):
                        case, sample = place
                        at = {"case": case, "model": model, "sample": sample, "judge": judge}
                        row = RowKey(stage=stage, repeat=repeat, **at)
                        wanted[row] = "d"
                        found = [same, True]
                        verdicts_of = {
                            "diagnosis": {"same": same},
                            "reasons": {"found": found, "verified": found, "quotes": [[], []]},
                        }
                        if same is not None:
                            of_row = {"digest": "d", "attempt": 1, "outcome": Outcome.OK}
                            of_row["model_version"] = f"{judge}-1"
                            verdict = verdicts_of[stage]
                            attempts.append(Attempt(row=row, verdict=verdict, **of_row))
                ledger.declare(Scope(stage, model, judge), wanted)
    ledger.write_all([attempt] for attempt in attempts)
    return ledger


def _judged(rng, cases, accuracy, *, sensitivity=0.9, specificity=0.95):
    """Verdicts of the old judge, and of a new one that repeats a yes and a no so often."""
    old, new = {}, {}
    for case in range(cases):
        for sample in range(SAMPLES):
            place = f"case{case:03}", sample
            old[place] = bool(rng.random() < accuracy)
            new[place] = bool(rng.random() < (sensitivity if old[place] else 1 - specificity))
    return old, new


@pytest.fixture(scope="module")
def found_and_verdicts(tmp_path_factory):
    """A bridge over a model that both judged and one that only the new judge saw."""
    rng = np.random.default_rng(0)
    before, after = _judged(rng, 60, 0.4), _judged(rng, 60, 0.6)
    verdicts = {"before": {OLD: before[0], NEW: before[1]}, "after": {NEW: after[1]}}
    ledger = _ledger(tmp_path_factory.mktemp("bridge") / "ledger.sqlite", verdicts)
    with ledger:
        return bridge(ledger, (OLD, NEW), _config()), before, after


def _printed(found, width=80):
    """Text of a bridge on one line, each of its words whole."""
    with (console := Console(width=width)).capture() as captured:
        console.print(table(found))
    return " ".join(captured.get().split())


def _by_case(verdicts):
    cases = sorted({case for case, _ in verdicts})
    return np.array([np.mean([verdicts[c, s] for s in range(SAMPLES)]) for c in cases])


def test_the_confusion_table_and_the_accuracies_are_those_of_the_verdicts(found_and_verdicts):
    found, (old, new), _ = found_and_verdicts
    stage = found["stages"]["diagnosis"]
    counts = [
        sum((old[p], new[p]) == pair for p in old) for pair in itertools.product((1, 0), (1, 0))
    ]
    cells = ("both", "first_only", "second_only", "neither")
    assert stage["all"]["confusion"] == dict(zip(cells, counts, strict=True))
    assert (stage["all"]["items"], stage["all"]["cases"]) == (120, 60)
    model = stage["models"]["before"]
    assert [judged["value"] for judged in model["judged"]] == pytest.approx(
        [_by_case(old).mean(), _by_case(new).mean()]
    )
    assert model["difference"]["difference"] == pytest.approx(
        (_by_case(new) - _by_case(old)).mean()
    )
    assert model["kappa"]["low"] < model["kappa"]["value"] < model["kappa"]["high"]
    assert found["versions"] == {
        judge: {"diagnosis": {f"{judge}-1": 2 * n}, "reasons": {f"{judge}-1": n}}
        for judge, n in ((OLD, 60), (NEW, 120))
    }


def test_a_model_that_both_judged_alone_is_carried_to_what_the_first_judge_said(found_and_verdicts):
    found, (old, _), _ = found_and_verdicts
    estimated = found["stages"]["diagnosis"]["models"]["before"]["estimated"]
    assert estimated["value"] == pytest.approx(_by_case(old).mean())


def test_the_estimate_for_a_model_that_the_first_judge_never_saw(found_and_verdicts):
    found, (old, new), (hidden, seen) = found_and_verdicts
    sensitivity = np.mean([new[p] for p in new if old[p]])
    specificity = np.mean([not new[p] for p in new if not old[p]])
    by_hand = (_by_case(seen).mean() + specificity - 1) / (sensitivity + specificity - 1)
    model = found["stages"]["diagnosis"]["models"]["after"]
    assert model["judged"][0] == {"value": None, "low": None, "high": None, "cases": 0}
    assert model["estimated"]["value"] == pytest.approx(by_hand)
    assert model["estimated"]["low"] < _by_case(hidden).mean() < model["estimated"]["high"]
    assert model["shift"]["value"] == pytest.approx(by_hand - _by_case(seen).mean())
    (pair,) = found["stages"]["diagnosis"]["comparisons"]
    assert pair["corrected"]["value"] == pytest.approx(by_hand - _by_case(old).mean())
    assert pair["second"]["difference"] == pytest.approx((_by_case(seen) - _by_case(new)).mean())
    assert (pair["first"]["difference"], pair["first"]["cases"]) == (None, 0)
    null = {"difference": None, "p_value": None, "p_holm": None}
    assert pair["rates"] == {"q1": null, "q0": null}
    assert "Both judges judged before only: whether its q₁ and q₀ hold" in _printed(found)


def test_the_interval_carries_the_confusions_sample_too(tmp_path):
    rng = np.random.default_rng(1)
    target, widths = _judged(rng, 60, 0.5)[1], []
    for cases in (8, 60):
        old, new = _judged(rng, cases, 0.5)
        verdicts = {"before": {OLD: old, NEW: new}, "after": {NEW: target}}
        with _ledger(tmp_path / f"{cases}.sqlite", verdicts) as ledger:
            found = bridge(ledger, (OLD, NEW), _config())["stages"]["diagnosis"]["models"]
        estimated = found["after"]["estimated"]
        widths.append(estimated["high"] - estimated["low"])
    assert widths[0] > widths[1]


def test_statements_are_the_items_of_the_reasons(found_and_verdicts):
    found, (old, new), _ = found_and_verdicts
    stage = found["stages"]["reasons"]
    agree = sum(old[p] == new[p] for p in old if p[1] == 0)
    assert stage["all"]["items"] == 120
    assert stage["all"]["agreement"]["value"] == pytest.approx((agree + 60) / 120)


def test_a_completion_without_an_answer_is_wrong_under_both_judges_and_no_item(tmp_path):
    old = {("a", 0): True, ("b", 0): True}
    answers = {"before": {("a", 0): True, ("b", 0): True, ("c", 0): False}}
    with _ledger(tmp_path / "l", {"before": {OLD: old, NEW: old}}, answers=answers) as ledger:
        stage = bridge(ledger, (OLD, NEW), _config())["stages"]["diagnosis"]
    assert stage["all"]["items"] == 2
    assert [judged["value"] for judged in stage["models"]["before"]["judged"]] == [2 / 3, 2 / 3]


def test_where_a_judge_saw_a_part_of_the_cases_the_others_do_not_count_as_its_wrong_ones(tmp_path):
    new = {("a", 0): True, ("b", 0): False}
    answers = {"before": {**dict.fromkeys(new, True), ("c", 0): False}}
    verdicts = {"before": {OLD: {("a", 0): True}, NEW: new}}
    with _ledger(tmp_path / "l", verdicts, answers=answers) as ledger:
        model = bridge(ledger, (OLD, NEW), _config())["stages"]["diagnosis"]["models"]["before"]
    assert [(judged["value"], judged["cases"]) for judged in model["judged"]] == [
        (1, 1),
        (1 / 3, 3),
    ]
    assert model["difference"]["cases"] == 1


def test_an_estimate_and_its_interval_stay_within_what_is_possible(tmp_path):
    rng = np.random.default_rng(2)
    old, new = _judged(rng, 30, 0.5, specificity=0.8)
    none = dict.fromkeys(new, False)
    with _ledger(tmp_path / "l", {"before": {OLD: old, NEW: new}, "after": {NEW: none}}) as ledger:
        found = bridge(ledger, (OLD, NEW), _config())
        stage = found["stages"]["diagnosis"]
        model = stage["models"]["after"]
        old_model = stage["models"]["before"]
    assert model["estimated"]["value"] == model["estimated"]["low"] == 0.0
    assert model["shift"]["value"] < 0
    assert (model["clipped"], old_model["clipped"]) == (True, False)
    (pair,) = stage["comparisons"]
    of_levels = model["estimated"]["value"] - old_model["estimated"]["value"]
    assert pair["corrected"]["value"] == pytest.approx(
        model["shift"]["value"] - old_model["estimated"]["value"]
    )
    assert pair["corrected"]["value"] < of_levels
    printed = _printed(found, 100)
    assert (
        "0.000*" in printed and "* The estimate or its interval went beyond what is pos" in printed
    )
    assert f"{old_model['estimated']['value']:.3f}*" not in printed


@pytest.mark.filterwarnings("error")
def test_a_model_with_one_case_beside_a_larger_sample(tmp_path):
    old, new = _judged(np.random.default_rng(3), 30, 0.5)
    verdicts = {"before": {OLD: old, NEW: new}, "after": {NEW: {("alone", 0): True}}}
    with _ledger(tmp_path / "l", verdicts) as ledger:
        model = bridge(ledger, (OLD, NEW), _config())["stages"]["diagnosis"]["models"]["after"]
    assert model["estimated"]["value"] == 1.0 and model["difference"]["cases"] == 0


@pytest.mark.promise(
    "A judge that repeats its verdicts decides by their majority, as in `mcr eval`"
)
def test_a_judge_with_repeats_is_the_judge_of_results_json(tmp_path):
    rng = np.random.default_rng(4)
    old, _ = _judged(rng, 20, 0.5)
    new = {
        place: tuple(None if n == 9 else n < 5 for n in rng.integers(0, 10, 3).tolist())
        for place in old
    }
    workdir, c = Workdir(tmp_path), _config().copy_and_resolve_references()
    with _ledger(workdir.ledger, {"before": {OLD: old, NEW: new}}) as ledger:
        found = bridge(ledger, (OLD, NEW), _config())
    majority = {
        place: next((says for says in (True, False) if 2 * votes.count(says) > 3), None)
        for place, votes in new.items()
    }
    stage = found["stages"]["diagnosis"]
    assert 0 < stage["all"]["items"] == sum(says is not None for says in majority.values()) < 40
    assert stage["all"]["confusion"]["both"] == sum(old[p] and bool(majority[p]) for p in old)
    assert found["repeats"][NEW]["diagnosis"] == {"3": stage["all"]["items"]}
    assert "Verdicts of offline are majorities of 3 repeats." in _printed(found)
    with c.unlocked():
        c.sample.models, c.judge.repeat = ("before=openai:b",), 3
    scored = results.score(workdir, config.check(c, "test"))["models"]["before"]
    judged = stage["models"]["before"]["judged"][1]
    assert judged["value"] == pytest.approx(scored["accuracy"]["1"]["value"])
    assert judged["cases"] == scored["accuracy"]["1"]["resolved"]


def test_the_version_of_a_pair_is_that_of_its_stage(tmp_path):
    old = {("a", 0): True, ("b", 0): False}
    c = _config().copy_and_resolve_references()
    with c.unlocked():
        c.judge.models = (f"{OLD}=diagnosis:openai:m+reasons:openai:n",)
        c.judge.version = f"{OLD}-1+another"
    with _ledger(tmp_path / "l", {"before": {OLD: old, NEW: old}}) as ledger:
        found = bridge(ledger, (OLD, NEW), config.check(c, "test"))
    assert found["stages"].keys() == {"diagnosis"}  # of the reasons no verdict counts
    assert found["stages"]["diagnosis"]["all"]["items"] == 2


def test_judges_that_share_no_completion_are_refused(tmp_path):
    verdicts = {"before": {OLD: {("a", 0): True}}, "after": {NEW: {("a", 0): True}}}
    with (
        _ledger(tmp_path / "l", verdicts) as ledger,
        pytest.raises(McrError, match="no completion has a verdict of openai:old-judge and of off"),
    ):
        bridge(ledger, (OLD, NEW), _config())


def test_a_judge_of_chance_has_no_estimate_and_the_text_shows_a_dash(tmp_path):
    places = [(f"c{n}", 0) for n in range(8)]
    old = {place: n % 2 == 0 for n, place in enumerate(places)}
    new = {place: n % 4 < 2 for n, place in enumerate(places)}
    with _ledger(tmp_path / "l", {"before": {OLD: old, NEW: new}}) as ledger:
        found = bridge(ledger, (OLD, NEW), _config())
    model = found["stages"]["diagnosis"]["models"]["before"]
    assert model["estimated"] == {"value": None, "low": None, "high": None}
    printed = _printed(found)
    assert "second: no" in printed and "–" in printed


def _of_two_models(path, sensitivity, cases=40):
    """Bridges two models that both judges judged, the second with another rate of repeated yes."""
    rng = np.random.default_rng(5)
    before, after = _judged(rng, cases, 0.4), _judged(rng, cases, 0.6, sensitivity=sensitivity)
    both = {"before": before, "after": after}
    verdicts = {model: {OLD: old, NEW: new} for model, (old, new) in both.items()}
    with _ledger(path / "l", verdicts) as ledger:
        return bridge(ledger, (OLD, NEW), _config()), both


def test_where_both_judges_judged_the_observed_difference_stands_beside_the_corrected(tmp_path):
    found, both = _of_two_models(tmp_path, 0.9)
    (pair,) = found["stages"]["diagnosis"]["comparisons"]
    observed = (_by_case(both["after"][0]) - _by_case(both["before"][0])).mean()
    assert pair["first"]["difference"] == pytest.approx(observed)
    cells = (pair["first"]["difference"], pair["second"]["difference"], pair["corrected"]["value"])
    row = f"after − before {' '.join(f'{cell:+.3f}' for cell in cells)} ["
    assert f"difference first second corrected {'─' * 3}" in _printed(found)
    assert row in _printed(found)


def test_the_p_value_of_the_rates_is_that_of_every_pattern_of_signs(tmp_path):
    found, both = _of_two_models(tmp_path, 0.5, cases=6)
    pairs = {
        model: [
            [(old[c, s], new[c, s]) for s in range(SAMPLES)] for c in sorted({c for c, _ in old})
        ]
        for model, (old, new) in both.items()
    }
    (entry,) = found["stages"]["diagnosis"]["comparisons"]
    for name, says in (("q1", True), ("q0", False)):
        by_model = {
            m: [[n == o for o, n in case if o is says] for case in of] for m, of in pairs.items()
        }
        pool = {model: [hit for case in of for hit in case] for model, of in by_model.items()}
        rate = np.mean(pool["before"] + pool["after"])
        parts = [
            sum(h - rate for h in b) / len(pool["after"])
            - sum(h - rate for h in a) / len(pool["before"])
            for a, b in zip(by_model["before"], by_model["after"], strict=True)
        ]
        sums = [np.dot(signs, parts) for signs in itertools.product((1, -1), repeat=len(parts))]
        assert entry["rates"][name]["difference"] == pytest.approx(
            np.mean(pool["after"]) - np.mean(pool["before"])
        )
        assert entry["rates"][name]["p_value"] == pytest.approx(
            np.mean(np.abs(sums) >= abs(sum(parts)) - 1e-9)
        )


def test_rates_that_differ_clearly_are_a_warning_and_equal_ones_are_none(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found, both = _of_two_models(tmp_path / "a", 0.5)
    rates = [np.mean([new[p] for p in new if old[p]]) for old, new in both.values()]
    items = [sum(old.values()) for old, _ in both.values()]
    printed = _printed(found, 120)
    assert f"Warning: q₁ is {rates[0]:.3f} (before) and {rates[1]:.3f} (after), p " in printed
    assert "errs more often on one of these models than on the other" in printed
    assert all(f"of {count} " in printed for count in items)
    assert "Warning" not in _printed(_of_two_models(tmp_path / "b", 0.9)[0])


def test_many_items_of_few_cases_are_no_clear_difference_of_the_rates(tmp_path):
    old = {("a", s): True for s in range(30)} | {("b", s): True for s in range(30)}
    verdicts = {
        model: {OLD: old, NEW: dict.fromkeys(old, repeats)}
        for model, repeats in (("before", True), ("after", False))
    }
    with _ledger(tmp_path / "l", verdicts) as ledger:
        found = bridge(ledger, (OLD, NEW), _config())
    (pair,) = found["stages"]["diagnosis"]["comparisons"]
    assert pair["rates"]["q1"]["difference"] == -1.0 and pair["rates"]["q1"]["p_value"] == 0.5
    assert "Warning" not in _printed(found)


def test_versions_are_counted_per_kind_of_verdict(tmp_path):
    old = {("a", 0): True, ("b", 0): False}
    with _ledger(tmp_path / "l", {"before": {OLD: old, NEW: old}}) as ledger:
        path = ledger.path
    for judge, stage, version in ((OLD, "reasons", "large-2"), (OLD, "diagnosis", "small-1")):
        _set_version(path, version, f"judge = '{judge}' AND stage = '{stage}'")
    with Ledger(path) as ledger:  # a pair: each model has one version
        assert "versions" not in _printed(bridge(ledger, (OLD, NEW), _config()))
    _set_version(
        path, "small-2", f"judge = '{OLD}' AND stage = 'diagnosis' AND sample = 0", limit=1
    )
    with Ledger(path) as ledger:
        printed = _printed(bridge(ledger, (OLD, NEW), _config()), 120)
    assert f"The diagnosis verdicts of {OLD} are from several versions: small-" in printed
    assert "reasons verdicts" not in printed


def _set_version(path, version, where, limit=-1):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rows = f"SELECT id FROM attempts WHERE {where} LIMIT {limit}"
        db.execute(f"UPDATE attempts SET model_version = ? WHERE id IN ({rows})", (version,))


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_nothing_of_a_bridge_is_cropped(tmp_path, width):
    names = ("Q" * 80, "Z" * 80)
    old, new = _judged(np.random.default_rng(6), 20, 0.5)
    with _ledger(tmp_path / "l", {name: {OLD: old, NEW: new} for name in names}) as ledger:
        found = bridge(ledger, (OLD, NEW), _config())
    with (console := Console(width=width)).capture() as captured:
        console.print(table(found))
    text = captured.get()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for stage in found["stages"].values():
        for model in stage["models"].values():
            for figure in (*model["judged"], model["estimated"]):
                assert f"{figure['value']:.3f}" in text
                assert f"[{figure['low']:.3f}, {figure['high']:.3f}]" in text
    for letter in "QZ":
        assert text.count(letter) % 80 == 0 and text.count(letter) >= 4 * 80
    assert "equal in all 20 cases" in text  # the difference of the two models
