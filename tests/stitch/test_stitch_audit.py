"""The audit rejects traces with planted faults and accepts every good paraphrase."""

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


def test_every_good_paraphrase_passes():
    assert share(paraphrase.paraphrase) == 1.0


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (paraphrase.reversed_order, "early"),
        (lambda case, rng: paraphrase.invented(case, rng, DISEASES), "added"),
        (lambda case, rng: f"{joined(case)} Vellin was 112.", "added"),
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


@pytest.mark.skipif(not REAL.exists(), reason="no real cases at ../shared/data/cases")
def test_joined_statements_of_real_cases_pass():
    cases = read_cases(REAL / "medcasereasoning_val_16.jsonl")
    auditor = Auditor(cases, Limits())
    for case in cases:
        audit = auditor.audit(case, joined(case))
        assert (audit.faults, audit.lost, audit.added, audit.length) == ((), (), (), 1.0)


def told(*statements: str, diagnosis: str = "Quillfever", prompt: str = "Blue nails.") -> Case:
    return Case(
        case_prompt=prompt,
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(statements, 1)),
        final_diagnosis=diagnosis,
    )


@pytest.mark.parametrize(
    ("said", "lost", "added"),
    [
        ("At 38 C two of 12 ribs hummed for a week.", (), ()),
        ("At 39 C two of 12 ribs hummed.", ("38",), ("39",)),
        ("Of twelve ribs 2 hummed at 38.0 C.", (), ()),
        ("Ribs hummed.", ("12", "38"), ()),
    ],
)
def test_a_number_may_be_written_otherwise_but_be_neither_lost_nor_added(said, lost, added):
    case = told("Two of 12 ribs hummed at 38.0 C for 1 week.")
    audit = Auditor([case], Limits(shortest=0)).audit(case, said)
    assert (audit.lost, audit.added) == (lost, added)
    assert audit.faults == ("lost",) * bool(lost) + ("added",) * bool(added)


def test_what_statements_presentation_or_diagnosis_give_is_no_addition():
    case = told("Moss was felt.", prompt="She had once had velloritis.")
    auditor = Auditor(
        [case, *(told("x", diagnosis=d) for d in ("velloritis", "coralitis"))], Limits()
    )
    for name, added in (("quillfever", ()), ("velloritis", ()), ("coralitis", ("coralitis",))):
        assert auditor.audit(case, f"Moss was felt, {name} too.").added == added


@pytest.mark.parametrize(
    ("wrapped", "fault"),
    [
        ("As you wish:\n\n{}", "wrapped"),
        ("{}\n\nNote: I kept all of it.", "wrapped"),
        ("{} As an AI language model, I give no advice.", "wrapped"),
        ("<statements>\n{}\n</statements>", "wrapped"),
        ("The clinician states in statement one that {}", "wrapped"),
        ("{}<|im_end|>", "wrapped"),
        ("**Ribs**: {}", "wrapped"),
        ("{} Final answer: Quillfever", "wrapped"),
        ("## Ribs\n{}", "list"),
        ("- {}", "list"),
        ("• {}", "list"),
        ("* {}", "list"),
        ("1- {}", "list"),
        ("Statement 1: {}", "list"),
    ],
)
def test_what_small_models_put_around_a_passage_is_found(wrapped, fault):
    case = told("Ribs hummed on both visits of the patient.", "The moss confirmed quillfever.")
    audit = Auditor([case], Limits(longest=5)).audit(case, wrapped.format(joined(case)))
    assert fault in audit.faults


def test_words_that_the_statements_have_are_not_held_against_a_trace():
    case = told("The clinician saw the passage of moss.", "The moss confirmed quillfever.")
    assert Auditor([case], Limits()).audit(case, joined(case)).faults == ()


@pytest.mark.parametrize(
    "reply",
    [
        "Sure! Here is the rewritten passage:\n\nNails were blue.",
        "Here’s the passage:\nNails were blue.",
        "Hm. So be it.\n</think>\n\nNails were blue.",
        "<think>\nHm. </think>\n\nNails were blue. ",
    ],
)
def test_an_introduction_and_thoughts_are_no_part_of_a_trace(reply):
    assert trace_of(reply) == "Nails were blue."


def test_thoughts_within_a_trace_stay_to_be_found():
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
    assert set(audit.faults) <= set(FAULTS)
    read = parse(render(trace, "Quillfever"))
    if (read.trace, read.answer) != (trace, "Quillfever"):
        assert "tags" in audit.faults
