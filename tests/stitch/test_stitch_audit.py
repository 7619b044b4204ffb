"""The audit finds planted faults in the fictional clinic's traces and passes good paraphrases."""

import dataclasses
import pathlib
import random

import paraphrase
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax import synthetic
from mcr_jax.cases import Case, read_cases
from mcr_jax.completion import parse, render
from mcr_jax.stitch.audit import FAULTS, Auditor, Limits, joined, trace_of

CASES = synthetic.cases(11, {"train": 100})
REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"
DISEASES = sorted({case.final_diagnosis for case in CASES})
AUDITOR = Auditor(CASES, Limits())


def share(make, fault: str = "") -> float:
    """The share of traces with `fault`, or, without one, of those without any."""
    rng = random.Random(0)
    audits = [AUDITOR.audit(case, make(case, rng)) for case in CASES]
    return sum(fault in a.faults if fault else not a.faults for a in audits) / len(audits)


def test_at_least_98_of_100_good_paraphrases_pass():
    assert share(paraphrase.paraphrase) >= 0.98


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (paraphrase.dropped, "dropped"),
        (paraphrase.denied, "dropped"),
        (paraphrase.turned, "dropped"),
        (paraphrase.early, "early"),
        (paraphrase.reversed_order, "early"),
        (lambda case, rng: paraphrase.invented(case, rng, DISEASES), "added"),
        (lambda case, rng: "", "empty"),
        (lambda case, rng: " \n…", "empty"),
        (lambda case, rng: case.diagnostic_reasoning, "list"),
        (lambda case, rng: 3 * f"{paraphrase.paraphrase(case, rng)} ", "long"),
        (lambda case, rng: "All of this is clear.", "short"),
        (lambda case, rng: f"{paraphrase.paraphrase(case, rng)}</think>", "tags"),
        (lambda case, rng: f"<answer>x</answer>{paraphrase.paraphrase(case, rng)}", "tags"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_at_least_98_of_100_planted_faults_are_found(plant, fault):
    assert share(plant, fault) >= 0.98


def test_a_dropped_statement_is_named_by_its_number():
    rng = random.Random(1)
    for case in CASES[:20]:
        made = paraphrase.sentences(case, rng)
        for number in range(1, len(made) + 1):
            trace = " ".join(made[: number - 1] + made[number:])
            audit = AUDITOR.audit(case, trace)
            assert number in audit.missing
            assert audit.coverage == 1 - len(audit.missing) / len(case.statements)


def test_joined_statements_pass_for_every_case():
    for case in CASES:
        audit = AUDITOR.audit(case, joined(case))
        assert (audit.faults, audit.coverage, audit.length) == ((), 1.0, 1.0)


@pytest.mark.skipif(not REAL.exists(), reason="no real cases at ../shared/data/cases")
def test_joined_statements_of_real_cases_pass_and_each_one_dropped_is_missed():
    cases = read_cases(REAL / "medcasereasoning_val_16.jsonl")
    auditor = Auditor(cases, Limits(shortest=0.0))
    missed = total = 0
    for case in cases:
        assert auditor.audit(case, joined(case)).faults == ()
        for number in range(len(case.statements)):
            left = case.statements[:number] + case.statements[number + 1 :]
            audit = auditor.audit(case, "\n".join(left))
            total += 1
            missed += number + 1 not in audit.missing
    # A statement that quotes the same words as its neighbour is made by that one, too.
    assert missed <= 0.1 * total


def told(*statements: str, diagnosis: str = "Quillfever") -> Case:
    return Case(
        case_prompt="A fictional patient with blue nails.",
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(statements, 1)),
        final_diagnosis=diagnosis,
    )


@pytest.mark.parametrize(
    ("statement", "good", "bad"),
    [
        ("No fever was seen.", "Fever was absent.", "Fever was seen."),
        ("A fever of 38.5 C was felt.", "The fever was 38.5 C.", "The fever was 39 C."),
        ("The left flank drummed.", "Drumming of the left flank.", "Drumming of the right flank."),
        ("Vellin was elevated.", "A raised vellin.", "A low vellin."),
        (
            "Lanternitis was excluded by blue nails.",
            "Blue nails argue against lanternitis.",
            "Blue nails confirmed lanternitis.",
        ),
    ],
)
def test_denials_numbers_sides_and_conclusions_decide_whether_a_statement_is_made(
    statement, good, bad
):
    case = told(statement, "So the quillfever was confirmed by the moss.")
    rest = "The moss confirmed quillfever."
    assert AUDITOR.audit(case, f"{good} {rest}").missing == ()
    assert AUDITOR.audit(case, f"{bad} {rest}").missing == (1,)


def test_a_diagnosis_may_be_named_where_a_statement_names_it_but_concluded_only_where_it_does():
    case = told(
        "Blue nails could be quillfever or lanternitis.",
        "Moss excluded lanternitis.",
        "A hum confirmed quillfever.",
    )
    named = "Blue nails raise quillfever and lanternitis."
    rest = "Lanternitis is excluded by moss. The hum confirmed quillfever."
    assert AUDITOR.audit(case, f"{named} {rest}").faults == ()
    concluded = "Blue nails could be lanternitis but quillfever is the diagnosis."
    assert "early" in AUDITOR.audit(case, f"{concluded} {rest}").faults


def test_what_statements_presentation_or_diagnosis_give_is_no_addition():
    case = dataclasses.replace(told("Moss was felt."), case_prompt="She had once had velloritis.")
    for name, added in (("quillfever", ()), ("velloritis", ()), ("coralitis", ("coralitis",))):
        assert AUDITOR.audit(case, f"Moss was felt, {name} too.").added == added


def test_thoughts_before_the_trace_are_no_part_of_it():
    assert trace_of("<think>\nHm. </think>\n\nNails were blue. ") == "Nails were blue."
    assert trace_of("Nails <think>hm</think> were blue.") == "Nails <think>hm</think> were blue."


def test_joined_statements_with_tags_make_a_completion_that_is_read_as_it_was_written():
    case = told("A “</think>” and an <answer>x</answer> stand here", "Moss")
    trace = joined(case)
    read = parse(render(trace, case.final_diagnosis))
    assert (read.trace, read.answer) == (trace, case.final_diagnosis)
    assert trace.count(".") == 2


@given(st.text(max_size=300))
def test_any_reply_is_audited_and_one_that_would_break_its_completion_is_refused(reply):
    trace = trace_of(reply)
    audit = AUDITOR.audit(CASES[0], trace)
    assert set(audit.faults) <= set(FAULTS) and 0 <= audit.coverage <= 1
    read = parse(render(trace, "Quillfever"))
    if (read.trace, read.answer) != (trace, "Quillfever"):
        assert "tags" in audit.faults
