"""Names of diseases are found by the cases' own diagnoses and by how names end."""

import pytest

from mcr_jax.stitch.names import Vocabulary, accounted, stems
from mcr_jax.stitch.text import stem, words

KNOWN = Vocabulary(["Brindle rime", "Lorn's gulletry", "Gout", "Tb", "Oskel rib-song (left)"])


def found(said: str) -> set[str]:
    return {" ".join(name) for name in KNOWN.find(words(said))}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("It may be brindle rime.", {"brindl rime"}),
        ("One thinks of LORN’S GULLETRY first.", {"lorn gulletr"}),
        ("An Oskel rib-song hums.", {"oskel rib song"}),
        ("Gout was thought of.", {"gout"}),
        ("A tb of two letters is too many things.", set()),
        ("A velloritis and two quoromas.", {"velloritis", "quoroma"}),
        ("It was the Quarrow syndrome.", {"quarrow syndrom"}),
        ("The disease of this patient, another disorder, her fever.", set()),
        ("The diagnosis and the prognosis of a coma.", set()),
        ("Brindle nails and rime.", set()),
    ],
)
def test_names_are_found_as_they_stand(said, names):
    assert found(said) == {" ".join(stems(name)) if " " not in name else name for name in names}


@pytest.mark.parametrize(
    ("name", "given", "there"),
    [
        ("Brindle rime", "A rime that looks brindle.", True),
        ("Systemic frost erythema", "SFE was likely.", True),
        ("velloritis", "A velloritic plaque.", True),
        ("velloritis", "A vellin plaque.", False),
        ("Brindle rime", "A rime.", False),
    ],
)
def test_a_name_is_given_by_its_words_its_initials_or_its_root(name, given, there):
    assert accounted(stems(name), frozenset(map(stem, words(given)))) is there
