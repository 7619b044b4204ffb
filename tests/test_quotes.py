"""Quotes are verified and highlighted by their words, independent of typography."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.quotes import Text, find, normal, size

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
    text = f"{before} so {quote} {after}"  # or a sign or a "no" might stand before it
    if any(c.isalnum() for c in normal(quote)):
        assert find(quote, text)
    for start, end in find(quote, text):
        assert 0 <= start < end <= len(text)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("Vellin was low at dusk", "so **Vellin** was *low* at `dusk`."),
        ("Vellin was low", "## Vellin was low\n> and more"),
        ("it was 5*10 units", "and it was 5*10 units"),
        (
            "the ribs hum at dusk … vellin was low today",
            "The ribs hum at dusk, and vellin was low today",
        ),
        ("the ribs … it hums", "so the ribs ... it hums"),
        ("the ribs hum at dusk [...] vellin was low", "The ribs hum at dusk. So vellin was low."),
        ("the ribs hum at dusk . . . vellin was low", "The ribs hum at dusk. So vellin was low."),
        ("2 ribs were seen", "- 2 ribs were seen"),
        ("皮膚が光り塩水で", "患者は皮膚が光り塩水で改善"),
        ("ผิวหนังเป็น", "ผู้ป่วยผิวหนังเป็นมัน"),
        ("no fever at dusk", "there was no fever at dusk"),
        ("fever was considered", "it was not. Fever was considered"),
        ("fever was considered", "if not, fever was considered"),
        ("\u03b2-vellin <90 units", "the β-vellin <90 units"),
    ],
)
def test_a_quote_is_found_in_spite_of_how_it_is_set(quote, text):
    assert find(quote, text)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("sodium was 121 today", "sodium was 141 today"),
        ("sodium was 12 today", "sodium was 121 today"),
        ("a pressure of 120", "a pressure of 120/80"),
        ("a dose of 10", "a dose of 10-15 units"),
        ("vellin of -5 units", "vellin of 5 units"),
        ("<90 units of it", ">90 units of it"),
        ("90 units of it", "<90 units of it"),
        ("90 units of it", "≥ 90 units of it"),
        ("5 units of it", "a vellin of \u22125 units of it"),
        ("a count of 10", "a count of 10^6"),
        ("a count of 10", "a count of 10×2"),
        ("a count of 10", "a count of 10'000"),
        ("vellin = 5 units", "vellin ≠ 5 units"),
        ("fever at dusk was seen", "no fever at dusk was seen"),
        ("fever at dusk", "she didn’t have fever; she did not fever at dusk"),
        ("there was fever at dusk", "there was no fever at dusk"),
        ("small ribs at dusk", "non\u2011small ribs at dusk"),
        ("fever at dusk was seen", "no “fever at dusk was seen”"),
        ("fever at dusk was seen", "no (mossy) and no (fever at dusk was seen)"),
        ("be fever at dusk", "it cannot be fever at dusk"),
        ("it was so plain … small ribs at dusk", "it was so plain, the non-small ribs at dusk"),
        ("发热三天", "没有发热三天"),
        ("ไข้สูงมาก", "ไม่มีไข้สูงมาก"),
        ("it was seen … fever at dusk", "it was seen that there was no fever at dusk"),
        ("the ribs hum … it", "the ribs hum and it"),
        ("vellin was low then … the ribs hum here", "the ribs hum here, vellin was low then"),
        (
            "vellin was low then … the ribs hum here",
            f"vellin was low then{' x' * 200} the ribs hum here",
        ),
        ("か", "が"),
        ("光り", "光る"),
    ],
)
def test_a_quote_that_says_something_else_is_not_found(quote, text):
    assert find(quote, text) == []


def slow_fold(text):
    """Character by character: the folded text, and the place that each part comes from."""
    folded, places = [], []
    for place, character in enumerate(text):
        for part in normal(f"a{character}a")[1:-1]:
            folded.append(part)
            places.append(place)
    return "".join(folded), places


@given(st.text("aB1.  é\u0308\u00ad²ßﬁ™\t\n漢", max_size=30))
def test_folding_a_text_at_once_is_folding_each_character(text):
    made = Text(text)
    folded, places = slow_fold(text)
    squeezed = [i for i, c in enumerate(folded) if not (c == " " and folded[:i].endswith(" "))]
    assert made._folded_text == "".join(folded[i] for i in squeezed)
    assert [made._place(i) for i in range(len(squeezed))] == [places[i] for i in squeezed]


def test_size_counts_words_and_three_characters_of_a_script_without_spaces_as_one():
    assert [size(t) for t in ("", "…", "a 3.2 ku/L", "漢字漢字漢字", "it's 漢字漢")] == [
        0,
        0,
        4,
        2,
        2,
    ]
