"""Words are compared by their stems, and a denied word is another word than the same without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.quotes import normal
from mcr_jax.stitch import text


def one(said: str) -> text.Sentence:
    (sentence,) = text.sentences(said)
    return sentence


@pytest.mark.parametrize(
    ("said", "denied", "plain"),
    [
        ("There was no fever.", {"fever"}, set()),
        ("Fever was absent.", {"fever"}, set()),
        ("A rash was not seen.", {"rash"}, set()),
        ("A rash wasn’t found.", {"rash"}, set()),
        ("She denied night sweats but had chills.", {"night", "sweat"}, {"chill"}),
        ("In the absence of moss, nails were blue.", {"moss"}, {"blue"}),
        ("The joint was free of rust; the knee was not.", {"rust"}, {"joint", "knee"}),
        ("A frost without itch because plaques spread.", {"itch"}, {"frost", "plaque", "spread"}),
        ("The picture does not fit the frost.", set(), {"frost"}),
        ("Not only the ribs hummed.", set(), {"rib", "humm"}),
    ],
)
def test_a_denial_reaches_what_it_denies_and_no_further(said, denied, plain):
    sentence = one(said)
    assert {text.stem(w) for w in denied} <= sentence.denied - sentence.stems
    assert {text.stem(w) for w in plain} <= sentence.stems - sentence.denied


def test_what_follows_in_a_list_may_be_denied_or_not():
    sentence = one("There was no fever, rash or chills.")
    assert "fever" in sentence.denied - sentence.stems
    assert {"rash", "chill"} <= sentence.denied & sentence.stems


@pytest.mark.parametrize(
    ("one", "other"),
    [("elevated", "elevation"), ("biopsies", "biopsy"), ("nails", "nail"), ("swelling", "swelled")],
)
def test_forms_of_a_word_have_one_stem(one, other):
    assert text.stem(one) == text.stem(other)


@pytest.mark.parametrize(
    ("one", "other"), [("hypertension", "hypertrophy"), ("38.5", "39"), ("sepsis", "septum")]
)
def test_other_words_have_other_stems(one, other):
    assert text.stem(one) != text.stem(other)


def test_numbers_are_read_as_they_are_meant():
    said = one("Of 9,900/μL, 38.5 C and two of three, as reported [7, 11].")
    assert said.numbers == {"9900", "38.5", "2", "3"}


@given(st.text(max_size=80))
def test_any_text_is_read_and_folding_agrees_with_that_of_quotes(said):
    for sentence in text.sentences(said):
        assert sentence.words
    # But for what the audit leaves out or reads as a mark, both make the same words.
    rare = set("–—―…[]") | {c for c in said if not c.isascii()}
    if not rare & set(said) and "," not in said:
        assert " ".join(text.fold(said).split()) == normal(said)
