"""Numbered statements are taken apart without loss. Every disease named here is invented."""

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from mcr_jax import statements

STYLES = ("1. ", "1) ", "(1) ")
_LOOKS_LIKE_A_MARKER = re.compile(r"(?<!\S)\(?[0-9]+[.)](?!\S)")
_BITS = ("1.", "2.", "3.", "1)", "2)", "(1)", "(2)", "4 days", "38.5", "(", ")", "“", ".”", "PaO₂")
_GAPS = (" ", "\n", "  \n", "\n  ", "\u2009", ". ", "")

list_like = st.lists(st.sampled_from(_BITS + _GAPS) | st.text(max_size=4), max_size=30).map("".join)
item = (
    st.text(min_size=1, max_size=60)
    .map(str.strip)
    .filter(lambda text: text and not _LOOKS_LIKE_A_MARKER.search(text))
)


def squeezed(text: str) -> str:
    return "".join(text.split())


@hypothesis.given(st.lists(item, min_size=1, max_size=12), st.sampled_from(STYLES))
def test_statements_that_are_numbered_and_parsed_are_the_same_statements(items, style):
    numbered = statements.number_statements(items, style)
    assert statements.parse_statements(numbered) == tuple(items)


@hypothesis.given(list_like | st.text())
def test_statements_and_the_text_without_its_numbering_hold_the_same_characters(text):
    assert squeezed("".join(statements.parse_statements(text))) == squeezed(
        statements.strip_numbering(text)
    )


@hypothesis.given(list_like | st.text())
def test_only_a_run_of_markers_that_counts_from_one_is_ever_taken_out(text):
    """Checked without the parser: the text is its stripped form with 1, 2, 3, … put back in."""
    kept, position = statements.strip_numbering(text), 0
    removed = []
    for match in re.finditer(r"\(?([0-9]+)[.)]", text):
        between = text[position : match.start()]
        if kept.startswith(between) and not kept.startswith(text[position : match.end()]):
            removed.append(match)
            kept, position = kept[len(between) :], match.end()
    assert kept == text[position:]
    assert [int(match[1]) for match in removed] == list(range(1, len(removed) + 1))
    assert len({re.sub("[0-9]+", "", match[0]) for match in removed}) <= 1


@hypothesis.given(list_like | st.text())
def test_statements_are_never_blank_and_have_no_outer_white_space(text):
    assert all(part and part == part.strip() for part in statements.parse_statements(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", (), id="empty text has no statements"),
        pytest.param(" \n ", (), id="white space has no statements"),
        pytest.param("Quillfever was likely.", ("Quillfever was likely.",), id="no numbering"),
        pytest.param("1. Quillfever.", ("Quillfever.",), id="a lone marker at the start"),
        pytest.param(
            "1. Quillfever — “fever of 38.5 C … 2.5 days.”  \n2. Mossgout\u2009— “PaO₂ 60”",
            ("Quillfever — “fever of 38.5 C … 2.5 days.”", "Mossgout\u2009— “PaO₂ 60”"),
            id="decimals, quotes and thin spaces",
        ),
        pytest.param(
            "1. It was grade\n2. Then, at day 3. 4 days later\n2. Mossgout",
            ("It was grade", "Then, at day 3. 4 days later\n2. Mossgout"),
            id="a number that opens a line is a marker, its repetition is not",
        ),
        pytest.param(
            "1. Quillfever was of grade 2. Then it rose at day 3. 4 days later it fell.",
            ("Quillfever was of grade 2. Then it rose at day 3. 4 days later it fell.",),
            id="numbers inside sentences",
        ),
        pytest.param(
            "1. No rash. 2. No cough at day 3. 4 days on.” 3. So Mossgout.",
            ("No rash.", "No cough at day 3. 4 days on.”", "So Mossgout."),
            id="markers in the flow of one line",
        ),
        pytest.param(
            "1) Quillfever (grade 2) was out 2) Mossgout",
            ("Quillfever (grade 2) was out", "Mossgout"),
            id="a parenthesis that closes is no marker",
        ),
        pytest.param("(1) rash (2) cough", ("rash", "cough"), id="(1) without sentence ends"),
        pytest.param(
            "Likely because of (1) rash and (2) cough.",
            ("Likely because of (1) rash and (2) cough.",),
            id="an enumeration inside a sentence",
        ),
        pytest.param(
            "1. Mossgout, because:\n  1. rash\n  2. cough\n2. Not Quillfever",
            ("Mossgout, because:\n  1. rash\n  2. cough", "Not Quillfever"),
            id="a nested list",
        ),
        pytest.param(
            "1. Mossgout:\n(1) rash\n(2) cough\n2. Not Quillfever",
            ("Mossgout:\n(1) rash\n(2) cough", "Not Quillfever"),
            id="a nested list of another style",
        ),
        pytest.param(
            "Considered were:\n\n1) Quillfever\nwith rash\n2) Mossgout\n\nSo it was Mossgout.",
            ("Considered were: Quillfever\nwith rash", "Mossgout\n\nSo it was Mossgout."),
            id="what stands before and after the list is kept",
        ),
        pytest.param(
            "1. Quillfever\n3. Mossgout", ("Quillfever\n3. Mossgout",), id="a gap ends the run"
        ),
        pytest.param("2. Quillfever\n3. Mossgout", ("2. Quillfever\n3. Mossgout",), id="no one"),
        pytest.param("1. Quillfever\n2.\n3. Mossgout", ("Quillfever", "Mossgout"), id="no text"),
        pytest.param("1.\nQuillfever\r\n2.\nMossgout", ("Quillfever", "Mossgout"), id="own lines"),
        pytest.param("1. Quill\n  2. Moss", ("Quill", "Moss"), id="uneven indents"),
        pytest.param("1.5 mg\n2.5 mg", ("1.5 mg\n2.5 mg",), id="decimals open lines"),
    ],
)
def test_numbering_is_told_from_numbers(text, expected):
    assert statements.parse_statements(text) == expected
