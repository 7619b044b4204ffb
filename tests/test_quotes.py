"""How quotes are verified and highlighted: the same words count, whatever they are set in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.quotes import find, normal

TRACE = (
    "The ribs hum at dusk. Vellin was 3.2 ku/L (4.0 to 8.0), so “Harrowmere fever” is out; "
    "SpO₂ <90."
)


@pytest.mark.parametrize(
    "quote",
    [
        "The ribs hum at dusk",
        "the RIBS  hum\nat dusk.",
        "“…ribs hum at dusk…”",
        "Vellin was 3.2 ku/L (4.0 to 8.0)",
        'so "Harrowmere fever" is out',
        "so «Harrowmere fever» is out",
        "ribs\u2009hum\u00a0at du\u00adsk",
        "SpO2 ‹90",
    ],
)
def test_quote_that_reads_the_same_occurs(quote):
    (start, end), *others = find(quote, TRACE)
    assert not others
    assert normal(TRACE[start:end]) in normal(quote)


@pytest.mark.parametrize(
    "quote",
    [
        *(
            "",
            "  ",
            "…",
            "“”",
            "The ribs hum at dawn",
            "ribs hum dusk",
            "Vellin was 3.2 ku/L (4.0 to 8",
        ),
        *("he ribs", "vellin was 3", ".*", "ibs hu", "2 ku/L"),
    ],
)
def test_quote_with_other_or_partial_words_does_not_occur(quote):
    assert find(quote, TRACE) == []


def test_every_place_is_found_in_the_text_as_it_is_written():
    text = "Low vel\u00adlin.  “LOW\u2009vellin”, low vellin 3.2 and low vellins"
    assert [text[a:b] for a, b in find("low vellin", text)] == [
        *("Low vel\u00adlin", "LOW\u2009vellin", "low vellin"),
    ]
    assert find("low vellin 3", text) == []


def test_accents_do_not_matter():
    assert find("naive", "a NAI\u0308VE guess") and find("at a cafe", "at a café")


@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_a_text_stands_in_itself(before, quote, after):
    text = f"{before} {quote} {after}"
    if any(c.isalnum() for c in normal(quote)):
        assert find(quote, text)
    for start, end in find(quote, text):
        assert 0 <= start < end <= len(text)
