"""The fictional clinic is repeatable, clearly invented, and solvable only with two findings."""

import collections
import re

import pytest

from mcr_jax import clinic, synthetic
from mcr_jax.cases import SPLITS

SIZES = {"train": 300, "val": 40, "test": 60}
DISEASES = [disease for family in clinic.FAMILIES for disease in family.diseases]


@pytest.fixture(scope="module", params=[0, 1, 20_231])
def made(request):
    return synthetic.cases(request.param, SIZES)


@pytest.fixture(scope="module")
def many():
    return synthetic.cases(5, {"train": 2500})


def family_of(case) -> clinic.Family:
    (family,) = (f for f in clinic.FAMILIES if any(s in case.case_prompt for s in f.syndrome))
    return family


def value_of(axis, text: str) -> int:
    """Returns the value of an axis that the words of a presentation show."""
    (value,) = (i for i, signs in enumerate(axis) if any(sign in text for sign in signs))
    return value


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.lower()))


def triples(text: str) -> set[str]:
    run = [word.strip(".,()").lower() for word in text.split()]
    return {" ".join(run[i : i + 3]) for i in range(len(run) - 2)}


def test_cases_are_a_function_of_the_seed(made):
    assert synthetic.cases(0, SIZES) == synthetic.cases(0, SIZES)
    prompts = {case.case_prompt for case in synthetic.cases(77, SIZES)}
    assert prompts.isdisjoint(case.case_prompt for case in made)


def test_each_split_has_the_size_asked_for_and_no_case_occurs_twice(made):
    assert collections.Counter(case.split for case in made) == SIZES
    assert len({case.fingerprint for case in made}) == len(made)
    assert len({case.pmcid for case in made}) == len(made)


def test_asking_for_more_training_cases_leaves_the_test_cases_alone():
    def held_out(cases):
        return [case for case in cases if case.split == "test"]

    assert held_out(synthetic.cases(2, SIZES)) == held_out(synthetic.cases(2, {"test": 60}))


@pytest.mark.parametrize("family", clinic.FAMILIES, ids=lambda family: family.syndrome[0])
def test_in_the_tables_one_finding_leaves_two_diseases_and_two_findings_leave_one(family):
    assert len(set(family.diseases)) == 3
    allowed = [{d for d in range(3) if d != value} for value in range(3)]
    assert all(len(left) == 2 for left in allowed)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    assert all(len(allowed[a] & allowed[b]) == 1 for a, b in pairs)
    for axis in (family.axis_a, family.axis_b):
        phrases = [phrase for signs in axis for phrase in signs]
        assert len(phrases) == len(set(phrases)) == 9
        assert not any(p in q for p in phrases for q in phrases if p != q)


def test_the_diagnosis_follows_from_the_two_findings_as_written(many):
    for case in (*many, *synthetic.cases(8, {"test": 200})):
        family, text = family_of(case), case.case_prompt
        a, b = value_of(family.axis_a, text), value_of(family.axis_b, text)
        assert a != b
        assert case.final_diagnosis == family.diseases[3 - a - b]


def test_words_that_only_the_test_split_uses_are_in_one_of_its_cases_in_five():
    rare = [
        wordings[2] for family in clinic.FAMILIES for wordings in (*family.axis_a, *family.axis_b)
    ]
    found = collections.Counter()
    for case in synthetic.cases(7, {"train": 300, "val": 300, "test": 300}):
        found[case.split] += sum(wording in case.case_prompt for wording in rare)
    assert found["train"] == found["val"] == 0
    assert 55 <= found["test"] <= 65


def test_no_single_phrase_of_a_presentation_decides(many):
    seen = collections.defaultdict(set)
    for case in many:
        family, text = family_of(case), case.case_prompt
        keys = [syndrome for syndrome in family.syndrome if syndrome in text]
        keys += [sign for signs in family.axis_a for sign in signs if sign in text]
        keys += [sign for signs in family.axis_b for sign in signs if sign in text]
        for key in keys:
            seen[key].add(case.final_diagnosis)
    syndromes = {syndrome for family in clinic.FAMILIES for syndrome in family.syndrome}
    assert {key: len(found) for key, found in seen.items()} == {
        key: 3 if key in syndromes else 2 for key in seen
    }


def test_no_word_of_the_prose_around_the_findings_betrays_the_diagnosis(many):
    """Each common word occurs with each disease of a family about as often as the next."""
    for family in clinic.FAMILIES:
        own = [case for case in many if family_of(case) is family]
        axes = (family.axis_a, family.axis_b)
        finding_words = words(" ".join(sign for axis in axes for signs in axis for sign in signs))
        with_word = collections.defaultdict(collections.Counter)
        total = collections.Counter(case.final_diagnosis for case in own)
        for case in own:
            for word in words(case.case_prompt) - finding_words:
                with_word[word][case.final_diagnosis] += 1
        common = {w: n for w, n in with_word.items() if n.total() >= 0.1 * len(own)}
        assert common
        for word, counts in common.items():
            shares = [counts[disease] / total[disease] for disease in family.diseases]
            assert max(shares) - min(shares) < 0.35, (word, shares)


def test_a_case_has_three_to_six_statements_that_name_the_diagnosis_last(made):
    for case in made:
        assert 3 <= len(case.statements) <= 6
        assert case.final_diagnosis in case.statements[-1]
    assert {len(case.statements) for case in made} == {3, 4, 5, 6}


def test_every_statement_quotes_the_presentation(made):
    for case in made:
        for statement in case.statements:
            quotations = re.findall("“(.*?)”", statement)
            assert quotations
            assert all(quotation in case.case_prompt for quotation in quotations)


def test_both_mimics_are_excluded(made):
    for case in made:
        excluded = [s for s in case.statements if "was excluded" in s]
        for mimic in set(family_of(case).diseases) - {case.final_diagnosis}:
            assert any(f"{mimic} was excluded" in statement for statement in excluded)


def test_no_presentation_names_a_disease(made):
    for case in made:
        assert not any(disease.lower() in case.case_prompt.lower() for disease in DISEASES)


def test_no_two_splits_share_a_nearly_equal_presentation(made):
    of = {split: [triples(c.case_prompt) for c in made if c.split == split] for split in SPLITS}
    pairs = [("train", "val"), ("train", "test"), ("val", "test")]
    nearest = max(len(x & y) / len(x | y) for s, t in pairs for x in of[s] for y in of[t])
    assert nearest < 0.5


def test_every_case_says_that_it_is_invented(made):
    for case in made:
        assert case.pmcid.startswith("FICTION-")
        assert "Fictional" in case.journal
        assert "never happened" in case.title
        fields = case.asdict()
        assert all(fields[name].strip() for name in ("pmcid", "title", "journal", "case_prompt"))
        assert not re.search(r"[{}]|None", " ".join(fields.values()))
