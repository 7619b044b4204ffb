"""Words are compared case-folded and without endings, numbers by value."""

import pytest

from mcr_jax.stitch import text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Lorn’s tumours", "lorn TUMOR"),
        ("oedema", "edema"),
        ("38.0 – 38.50", "38 38.5"),
        ("naïve nails", "naive nail"),
    ],
)
def test_what_is_written_otherwise_has_the_same_stems(one, other):
    assert text.stems(one) == text.stems(other)


@pytest.mark.parametrize(
    ("one", "other"), [("hypertension", "hypotension"), ("38.5", "39"), ("axis", "axi")]
)
def test_other_words_have_other_stems(one, other):
    assert text.stems(one) != text.stems(other)


def test_numbers_are_read_as_they_are_meant():
    said = "Of 9,900/μL, 10⁹ and 38.50 C; HLA-B27 [7, 11], as in Fig. 12."
    assert text.numbers(said) == {"9900", "10", "9", "38.5", "27"}


def test_words_for_numbers_count_where_they_are_asked_for():
    said = "Two of three, twice, on the fifth day; stage IV, tenfold 6."
    assert text.numbers(said) == {"6"}
    assert text.numbers(said, in_words=True) == {"2", "3", "4", "5", "6"}


def test_a_sentence_ends_at_its_mark_or_at_the_end_of_a_line():
    assert text.sentences("One nail. “Two nails?” Three\n\nfour of 38.5…") == [
        ("one", "nail"),
        ("two", "nail"),
        ("three",),
        ("four", "of", "38.5"),
    ]
