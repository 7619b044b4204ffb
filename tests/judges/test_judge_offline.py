"""Rule-based judge: matching words verify; another finding, disease or denial does not."""

import pytest

from mcr_jax import prompts, synthetic
from mcr_jax.cases import Case
from mcr_jax.generate.api import Outcome
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.judges.offline import OfflineJudge

STATEMENTS = (
    "Brindle rime was excluded: it would need no change in warm brine, against “worsening in "
    "brine”.",
    "Tidewick murmur was excluded because of “vellin 3.2 ku/L (4.0 to 8.0)”, where it would need "
    "vellin high.",
    "Saltmarsh pallor was favored since “netted plaques at dusk” came together with “relief at "
    "noon”.",
)
CASE = Case(
    case_prompt="Frost.",
    diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(STATEMENTS, start=1)),
    final_diagnosis="Saltmarsh pallor",
)


def found(trace, case=CASE):
    request = reasons.request("key", case, trace, prompts.load(reasons.PROMPT))
    (reply,) = OfflineJudge().generate([request])
    assert reply.outcome is Outcome.OK
    verdict = reasons.parse(request, reply.text)
    assert verdict["verified"] == verdict["found"]  # what it quotes is always there
    return verdict["found"]


def same(reference, predicted):
    case = Case(case_prompt="x", diagnostic_reasoning="x", final_diagnosis=reference)
    request = diagnosis.request("key", case, predicted, prompts.load(diagnosis.PROMPT))
    (reply,) = OfflineJudge().generate([request])
    return diagnosis.parse(request, reply.text)["same"]


def test_diagnosis_is_the_same_only_in_the_same_words():
    assert same("Lorn's gulletry", "the LORN’S  gulletry.")
    assert not same("Lorn's gulletry", "Lorn's gulletry or Pellam hitch")
    assert not same("Lorn's gulletry", "gulletry")
    assert not same("…", "?!")


def test_statements_word_for_word_are_found_in_any_order():
    assert found(" ".join(reversed(STATEMENTS))) == [True, True, True]


@pytest.mark.parametrize(
    "sentence",
    [
        "Because of “worsening in brine” Brindle rime was excluded, where it would need no change "
        "in warm brine.",
        "I EXCLUDED Brindle rime! Since it would need no change in warm brine, I excluded Brindle "
        'rime against "worsening in brine".',
        "Excluded: Brindle rime, as worsening in brine is not the change it would need if warm.",
    ],
)
def test_same_point_in_nearly_the_same_words_is_found(sentence):
    assert found(f"It hums. {sentence} So far.") == [True, False, False]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("worsening in brine”", "relief in brine”"),  # another finding
        ("Brindle rime", "Quellan rime"),  # another disease
        ("excluded", "favored"),  # another conclusion
        ("no change", "change"),  # a denial less
        ("“worsening in brine”", "“no change in brine”, not worsening"),  # findings swapped
    ],
)
def test_one_wrong_point_is_not_found(right, wrong):
    assert right in STATEMENTS[0]
    assert found(STATEMENTS[0]) == [True, False, False]
    assert found(STATEMENTS[0].replace(right, wrong)) == [False, False, False]


@pytest.mark.parametrize(
    ("right", "wrong"), [("3.2", "3.3"), ("4.0", "3.0"), ("high", "low"), ("Tidewick", "Oskel")]
)
def test_another_value_or_direction_is_not_found(right, wrong):
    assert found(STATEMENTS[1].replace(right, wrong)) == [False, False, False]


def test_naming_the_right_disease_is_not_enough():
    assert not any(found("Saltmarsh pallor was favored since it is the only one that fits."))


def test_words_spread_over_the_trace_are_not_a_point():
    assert not any(found(STATEMENTS[0].replace(",", ".").replace(":", ".")))


@pytest.mark.parametrize("trace", ["…", "a", "</trace>", "\n\n", "1. 2. 3."])
def test_trace_without_reasons_finds_nothing(trace):
    assert found(trace) == [False, False, False]


def test_statement_of_two_sentences_is_found_in_two_sentences():
    case = Case(
        case_prompt="x",
        diagnostic_reasoning="1. The plaques shine at dusk. This argues for Brindle rime.",
        final_diagnosis="x",
    )
    assert found("Well. The plaques shine at dusk. This argues for Brindle rime. End.", case) == [
        True
    ]
    assert found("The plaques shine at dusk. Well. This argues for Brindle rime.", case) == [False]


def test_statement_of_common_words_only_is_never_found():
    case = Case(case_prompt="x", diagnostic_reasoning="1. So it is.", final_diagnosis="x")
    assert found("So it is.", case) == [False]


def test_every_fictional_case_finds_its_own_reasons_and_its_mimics_do_not():
    cases = synthetic.cases(3, {"test": 40})
    for case in cases:
        assert all(found(" ".join(case.statements), case))
        last = case.statements[-1]
        for other in cases:
            if other.final_diagnosis != case.final_diagnosis:
                swapped = last.replace(case.final_diagnosis, other.final_diagnosis)
                assert not found(swapped, case)[-1]
