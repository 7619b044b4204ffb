"""Known disease names are the diagnoses of the cases, found as written. All are invented."""

import pytest

from mcr_jax.cases import Case
from mcr_jax.stitch.names import Vocabulary, gives, is_early, name_of
from mcr_jax.stitch.text import stems


def case(diagnosis: str, *statements: str) -> Case:
    return Case(
        case_prompt="A fictional patient.",
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(statements, 1)) or "-",
        final_diagnosis=diagnosis,
    )


DIAGNOSES = ("Brindle rime", "Lorn's gulletry", "Frostel", "Tb", "Oskel rib-song (left)", "(…)")
KNOWN = Vocabulary(map(case, DIAGNOSES))


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("It may be brindle rime.", {"Brindle rime"}),
        ("One thinks of LORN’S GULLETRY first.", {"Lorn's gulletry"}),
        ("An Oskel rib-song hums, or two frostels.", {"Oskel rib-song", "Frostel"}),
        ("A tb of two letters is too many things.", set()),
        ("A velloritis, a rash, low platelets, brindle nails and rime.", set()),
    ],
)
def test_names_are_found_as_they_stand(said, names):
    assert KNOWN.find(stems(said)) == set(map(name_of, names))


@pytest.mark.parametrize(
    ("name", "given", "there"),
    [
        ("Brindle rime", "A rime that looks brindle.", True),
        ("Systemic frost erythema", "SFE was likely.", True),
        ("Systemic frost erythema", "The sfe.", False),
        ("velloritis", "A velloritic plaque.", True),
        ("velloritis", "A vellin plaque.", False),
        ("Brindle rime", "A rime.", False),
    ],
)
def test_a_name_is_given_by_its_words_its_initials_or_its_roots(name, given, there):
    assert gives(given, name_of(name)) is there


LATE = case("Kell-Grime syndrome", "Ribs hummed.", "Nails were blue at dusk.", "KGS fits the moss.")
FIRST = case(
    "Quillfever", "Hums raise quillfever or rime.", "Moss excluded rime.", "So quillfever."
)
UNNAMED = case("Quillfever", "Ribs hummed at noon.", "Nails were blue.", "Moss was felt at last.")


@pytest.mark.parametrize(
    ("of", "trace", "early"),
    [
        (LATE, "This is KGS. Ribs hummed, nails were blue at dusk, and moss fits.", True),
        (LATE, "Kell-Grime syndrome, which fits the moss. Ribs hummed. Nails were blue.", True),
        (LATE, "Ribs hummed, nails were blue at dusk and all of it with the moss fits KGS.", False),
        (LATE, "Ribs hummed. Nails were blue. The moss is what Kell-Grime syndrome has.", False),
        (FIRST, "Quillfever or rime hum so. Rime is out by the moss. It is quillfever.", False),
        (FIRST, "So quillfever. Hums raise rime, too. Moss excluded rime.", True),
        (UNNAMED, "Quillfever hums at noon. Blue nails. Moss at last.", True),
        (UNNAMED, "Ribs hummed at noon. Blue nails. Moss at last means quillfever.", False),
        (UNNAMED, "", False),
        (case("(…)", "Ribs hummed."), "Ribs hummed.", False),
    ],
)
def test_the_diagnosis_is_early_well_before_the_statements_name_it(of, trace, early):
    assert is_early(of, trace) is early
