"""What turns a clinician's reasons is found, and what only rewords them is not."""

import pathlib
import re

import pytest

from mcr_jax.cases import Case, read_cases
from mcr_jax.stitch.audit import Auditor, Limits, joined, trace_of

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"

_OUT = r"\b(?:excluded|ruled out|exclusion of|ruling out)\b"
# Says the same still when that is changed.
_TWICE = r"\b(?:excluding|precludes|not support|not considered|not observed)\b"
_SAYS_MORE = (
    rf"{_OUT}|\b(?:exclusion|excluding|unlikely|less likely|supported|confirmed|precludes)\b"
)
# Kind of change: what is changed into what, in statements that do not match the last.
CHANGES = {
    "denial to affirmation": (
        (r"\bnot ", "", ""),
        (r"\bno\b", "some", ""),
        (r"\bwithout\b", "with", ""),
        (r"\b(?:absence|lack) of\b", "presence of", ""),
    ),
    "negative to positive": ((r"\bnegative\b", "positive", ""),),
    "normal to abnormal": ((r"\bnormal\b", "abnormal", ""),),
    "excluded to confirmed": ((_OUT, "confirmed", _TWICE),),
    "excluded to considered": ((_OUT, "considered", _TWICE),),
    "unlikely to likely": ((r"\bunlikely\b", "likely", ""), (r"\bless likely\b", "likely", "")),
    "considered to excluded": ((r"\bconsidered\b", "excluded", _SAYS_MORE),),
    "considered to confirmed": ((r"\bconsidered\b", "confirmed", _SAYS_MORE),),
    "concluded to excluded": ((r"\b(?:favored|confirmed|supported)\b", "excluded", _OUT),),
}


def distorted(case: Case, kind: str):
    """The joined statements of a case, one of them changed each time."""
    for pattern, other, unless in CHANGES[kind]:
        for number, statement in enumerate(case.statements):
            changed = re.sub(pattern, other, statement, flags=re.IGNORECASE)
            if changed == statement or (unless and re.search(unless, statement, re.IGNORECASE)):
                continue
            told = [*case.statements[:number], changed, *case.statements[number + 1 :]]
            yield " ".join(" ".join(line.split()).rstrip(".") + "." for line in told)


@pytest.mark.skipif(not REAL.exists(), reason="no real cases at ../shared/data/cases")
@pytest.mark.parametrize("kind", CHANGES)
def test_nine_of_ten_changes_of_what_real_statements_say_are_found(kind):
    cases = read_cases(REAL / "medcasereasoning_val_16.jsonl")
    auditor = Auditor(cases, Limits())
    found = [bool(auditor.audit(c, t).faults) for c in cases for t in distorted(c, kind)]
    assert len(found) >= 3 and sum(found) >= 0.9 * len(found)


@pytest.mark.skipif(not REAL.exists(), reason="no real cases at ../shared/data/cases")
def test_real_statements_with_other_joints_pass():
    cases = read_cases(REAL / "medcasereasoning_val_16.jsonl")
    auditor = Auditor(cases, Limits())
    for case in cases:
        told = joined(case)
        for said in (told, re.sub(r"[“”]", "", told), told.replace(" — ", ": ")):
            assert auditor.audit(case, said).faults == ()


def told(*statements: str, diagnosis: str = "Quillfever", prompt: str = "Blue nails.") -> Case:
    return Case(
        case_prompt=prompt,
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(statements, 1)),
        final_diagnosis=diagnosis,
    )


def faults(statement: str, said: str) -> tuple[str, ...]:
    """Of a trace that says `said` for `statement`, and a conclusion as it stands."""
    end = "The moss confirmed quillfever."
    case = told(statement, end)
    return Auditor([case], Limits()).audit(case, f"{said} {end}").faults


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("She did not have hiccups.", "She had hiccups."),
        ("She had never had hiccups.", "She had had hiccups."),
        ("There was no lanternitis.", "There was a lanternitis."),
        ("She did not have lanternitis.", "She had lanternitis."),
        ("Lanternitis was not found.", "Lanternitis was found."),
        ("Lanternitis was ruled out by the drum.", "Lanternitis was seen by the drum."),
        ("Lanternitis was ruled out by the drum.", "Lanternitis was considered by the drum."),
        ("Lanternitis was considered for the hum.", "Lanternitis was excluded for the hum."),
        ("Lanternitis was considered for the hum.", "Lanternitis was confirmed for the hum."),
        (
            "Lanternitis was unlikely, ribs being still.",
            "Lanternitis was likely, ribs being still.",
        ),
        ("Lanternitis was less likely by hum.", "Lanternitis was more likely by hum."),
        ("Vellin was positive.", "Vellin was negative."),
        ("The plaque was medial.", "The plaque was lateral."),
    ],
)
def test_a_statement_turned_is_a_statement_left_out(statement, said):
    assert "dropped" in faults(statement, said)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("She did not have hiccups.", "She had no hiccups."),
        ("She did not see moss, dust, or owls.", "She saw no moss, dust, or owls."),
        ("She was afebrile.", "She had no fever."),
        ("Lanternitis was excluded by the hum.", "The hum argues against lanternitis."),
        ("Lanternitis was excluded by hum.", "Lanternitis came up, but the hum ruled it out."),
        ("Lanternitis weighed but excluded: ribs hum.", "Ribs hum, so lanternitis was excluded."),
        ("Lanternitis — “the ribs hummed”.", "Lanternitis was unlikely, as the ribs hummed."),
        ("Twelve ribs hummed at 38.0 C.", "At 38 C 12 ribs hummed."),
        ("A tumour with oedema mimicked moss.", "A tumor with edema mimics moss."),
        ("Fever was seen for weeks.", "She developed persistent fever for weeks."),
        ("Neither fever nor hiccups were seen.", "There was no fever and no hiccups."),
    ],
)
def test_other_words_for_the_same_pass(statement, said):
    assert faults(statement, said) == ()


def test_the_words_of_the_next_statement_do_not_answer_for_this_one():
    case = told(
        "Culture of the drum was negative for moss.",
        "The nasal swab was negative for owls.",
        "The hum confirmed quillfever.",
    )
    said = joined(case).replace("drum was negative", "drum was positive")
    audit = Auditor([case], Limits()).audit(case, said)
    assert audit.missing == (1,)


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ("The vellin was 112.", "added"),
        ("So quillfever is excluded.", "turned"),
        ("Lanternitis is the final diagnosis.", "turned"),
        ("Drummer syndrome was confirmed.", "added"),
    ],
)
def test_what_a_trace_adds_is_found(added, fault):
    case = told("Lanternitis was excluded by the drum.", "The moss confirmed quillfever.")
    assert fault in Auditor([case], Limits()).audit(case, f"{joined(case)} {added}").faults


@pytest.mark.parametrize(
    "said", ["This is KGS.", "The diagnosis is clearly drum moss.", "We diagnosed drum moss."]
)
def test_initials_or_words_that_announce_a_diagnosis_give_it_away(said):
    case = told("Ribs hummed.", "Nails were blue.", "KGS fits.", diagnosis="Kell-Grime syndrome")
    auditor = Auditor([case], Limits(longest=5))
    assert auditor.audit(case, joined(case)).faults == ()
    assert "early" in auditor.audit(case, f"{said} {joined(case)}").faults


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
    ],
)
def test_an_introduction_and_thoughts_without_their_opening_tag_are_no_part_of_a_trace(reply):
    assert trace_of(reply) == "Nails were blue."
