"""Names of diseases are found by the cases' diagnoses and alternatives, and by how names end."""

import pytest

from mcr_jax.cases import Case
from mcr_jax.stitch.names import Vocabulary, accounted, stems
from mcr_jax.stitch.text import stem, words


def case(diagnosis: str, *statements: str) -> Case:
    return Case(
        case_prompt="A fictional patient.",
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(statements, 1)) or "-",
        final_diagnosis=diagnosis,
    )


DIAGNOSES = ("Brindle rime", "Lorn's gulletry", "Frostel", "Tb", "Oskel rib-song (left)")
WEIGHED = (
    "Pellam hitch was excluded by the moss.",
    "Windle lung-knot considered and excluded — “the ribs were still”.",
    "Exclusion of Castelyn veil — “the pupils were quick”.",
    "Yarrowick joint-rust — “rusty fluid”.",
    "Persistent or recurrent gristle ague was deemed unlikely.",
    "Biopsy was considered.",
    "Other causes of moss were considered.",
    "The left flank drummed loudly on both visits of the patient, so moss was excluded.",
)
KNOWN = Vocabulary([case(DIAGNOSES[0], *WEIGHED), *map(case, DIAGNOSES[1:])])


def found(said: str) -> set[str]:
    return {" ".join(name) for name in KNOWN.find(words(said))}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("It may be brindle rime.", {"Brindle rime"}),
        ("One thinks of LORN’S GULLETRY first.", {"Lorn's gulletry"}),
        ("An Oskel rib-song hums.", {"Oskel rib-song"}),
        ("Frostel was thought of.", {"frostel"}),
        ("Gout was thought of.", {"gout"}),
        (
            "Pellam hitch, windle lung-knot, castelyn veil.",
            {"Pellam hitch", "Windle lung-knot", "Castelyn veil"},
        ),
        (
            "Yarrowick joint-rust, or recurrent gristle ague.",
            {"Yarrowick joint-rust", "recurrent gristle ague"},
        ),
        ("A persistent biopsy of moss, for other causes.", set()),
        ("A tb of two letters is too many things.", set()),
        ("A velloritis and two quoromas.", {"velloritis", "quoroma"}),
        ("It was the Quarrow syndrome.", {"Quarrow syndrome"}),
        ("The disease of this patient, another disorder, her fever.", set()),
        ("The diagnosis and the prognosis of a coma.", set()),
        ("Brindle nails and rime.", set()),
        ("She developed fever; neither fever nor infection; it ruled out infection.", set()),
        ("This suggests disease, despite toxicity and progressive disorder.", set()),
    ],
)
def test_names_are_found_as_they_stand(said, names):
    assert found(said) == {" ".join(stems(name)) for name in names}


@pytest.mark.parametrize(
    ("name", "given", "there"),
    [
        ("Brindle rime", "A rime that looks brindle.", True),
        ("Systemic frost erythema", "SFE was likely.", True),
        ("velloritis", "A velloritic plaque.", True),
        ("velloritis", "A vellin plaque, and velloroma.", False),
        ("Brindle rime", "A rime.", False),
    ],
)
def test_a_name_is_given_by_its_words_its_initials_or_its_root(name, given, there):
    assert accounted(stems(name), frozenset(map(stem, words(given)))) is there
