"""Numbered statements are split without loss. Every disease named here is invented."""

import hypothesis
import pytest
from hypothesis import strategies as st

from mcr_jax import statements
from mcr_jax._markers import SPACES, markers

STYLES = ("1. ", "1) ", "(1) ")
_BITS = ("1.", "2.", "3.", "1)", "2)", "(1)", "(2)", "4 days", "38.5", "(", ")", "“", ".”", "PaO₂")
_MORE = ("Step 1:", "Step 2:", "**1.**", "**2.", "- ", "• ", "> ", "a)", "b)", "ii.", "①", "\\n")
_GAPS = (" ", "\n", "  \n", "\n  ", "\u2009", ". ", "\u2028", "\ufeff", "")
_NUMBERED = (
    *("Step {}: ", "Step {} - ", "Statement {}. ", "**Step {}:** ", "### Step {}\n", "Reason {}\n"),
    *("Finding {}: ", "Differential diagnosis {}: ", "\u202a{}. ", "\u2066{}) "),
    *(
        "{}. ",
        "{}.",
        "{}) ",
        "({}) ",
        "[{}] ",
        "\\({}\\) ",
        "{}: ",
        "{} : ",
        "{} - ",
        "{} – ",
        "{} — ",
        "{}\\. ",
        "#{}. ",
    ),
    *("**{}.** ", "**{}**. ", "_{}._ ", "### {}. ", "> {}. ", "- {}. ", "* **{})** ", "  {}. "),
    *("\ufeff{}. ", "\u200b{}. ", "{}.\u00a0", "{}．", "（{}）", "{}、", "{}\ufe0f\u20e3 "),
)
_COUNTED = {  # scripts of numbers, and where a list of them is told from words
    "１２３": ("{}. ", "{}．", "{}) "),
    "①②③": ("{}", "{} ", "{}. ", "**{}** ", "{} - "),
    "❶❷❸": ("{} ",),
    "⑴⑵⑶": ("{} ",),
    "⒈⒉⒊": ("{} ",),
    "ⅠⅡⅢ": ("{}. ", "{}．", "({}) "),
    "ａｂｃ": ("{}）", "（{}）"),
    "abc": ("{}) ", "{})", "({})", "({}) ", "{}. ", "{}: ", "**{})** ", "> {}) "),
    "ABC": ("{}) ", "{}. ", "{}.", "### {}. "),
    ("i", "ii", "iii"): ("{}) ", "({}) ", "{}. "),
    ("I", "II", "III"): ("{}. ", "{}.", "**{}.** ", "{} - "),
    "•••": ("{} ", "{}"),
    "---": ("{} ",),
    "➢➢➢": ("{} ",),
    "\uf0b7\uf0b7\uf0b7": ("{} ",),
    "***": ("{} ", "  {} "),
}
_ENDS = ("\n", "\n\n", "\r\n", "\u2028", "\u2029", "\\n", "\\n\\n", "\\r\\n", "  \n")
_ITEMS = ("Quillfever was likely, at 38.5 C.", "Mossgout (grade 2) was out.", "So Brindle rime.")

list_like = st.lists(st.sampled_from(_BITS + _MORE + _GAPS) | st.text(max_size=4), max_size=30).map(
    "".join
)
item = (
    st.text(min_size=1, max_size=60)
    .map(lambda text: text.strip(SPACES))
    .filter(lambda text: text and not markers(text) and not markers(f"1. {text}")[1:])
)


def squeezed(text: str) -> str:
    return "".join(character for character in text if character not in SPACES)


@hypothesis.given(st.lists(item, min_size=1, max_size=12), st.sampled_from(STYLES))
def test_statements_that_are_numbered_and_parsed_are_the_same_statements(items, style):
    numbered = statements.number_statements(items, style)
    assert statements.parse_statements(numbered) == tuple(items)


@hypothesis.given(
    st.sampled_from(_NUMBERED),
    st.sampled_from(_ENDS),
    st.sampled_from([(1, 2, 3), (0, 1, 2), (2, 3, 4), (1, 3, 4), (1, 2, 5), (1, 2, 2), (1, 1, 1)]),
)
@hypothesis.settings(max_examples=300)
def test_a_list_is_a_list_however_it_is_numbered(style, end, numbers):
    text = end.join(style.format(n) + text for n, text in zip(numbers, _ITEMS, strict=True))
    assert statements.parse_statements(text) == _ITEMS
    told = statements.parse_statements(f"These were considered:{end}{text}")
    assert told == (f"These were considered: {_ITEMS[0]}", *_ITEMS[1:])


@pytest.mark.parametrize(
    ("numbers", "style"), [(n, style) for n, styles in _COUNTED.items() for style in styles]
)
def test_letters_numerals_and_bullets_are_lists_too(numbers, style):
    for end in _ENDS:
        text = end.join(style.format(n) + text for n, text in zip(numbers, _ITEMS, strict=True))
        assert statements.parse_statements(text) == _ITEMS


@pytest.mark.parametrize(
    "style",
    [
        "{}. ",
        "{}.",
        "{}) ",
        "({}) ",
        "{}: ",
        "{}\\. ",
        "**{}.** ",
        "Step {}: ",
        "> {}. ",
        "### {}. ",
    ],
)
def test_a_list_in_the_flow_of_one_line_is_a_list(style):
    for numbers in ((1, 2, 3), (0, 1, 2), (1, 3, 4), (1, 1, 2)):
        text = " ".join(style.format(n) + text for n, text in zip(numbers, _ITEMS, strict=True))
        assert statements.parse_statements(text) == _ITEMS


@hypothesis.given(list_like | st.text())
def test_statements_and_the_text_without_its_numbering_hold_the_same_characters(text):
    assert squeezed("".join(statements.parse_statements(text))) == squeezed(
        statements.strip_numbering(text)
    )


@hypothesis.given(list_like | st.text())
def test_only_markers_are_ever_taken_out_and_alone_only_at_the_start(text):
    """Checked without the parser: what is left is the text with gaps."""
    kept, there = statements.strip_numbering(text), iter(text)
    assert all(character in there for character in kept)
    if kept != text:
        found = markers(text)
        assert len(found) > 1 or not squeezed(text[: found[0].start])


@hypothesis.given(
    st.lists(
        st.sampled_from(
            [
                *("It was 38.5 C.", "Of grade 2. Then", "vitamin B 12", "On day 3. 4 days later"),
                *(
                    "E. coli",
                    "S. aureus and A. fumigatus",
                    "I think",
                    "A man",
                    "in 2 of 5.",
                    "pH 7.4",
                ),
                *("1:100", "12:30", "a 1-year-old", "5-10 mg", "- 5", "Fig. 1. Fever", "i.e. (2)"),
                *(
                    "B. cereus",
                    "(grade 1)",
                    "C-reactive protein",
                    "T: 38.5",
                    "1.5 mg",
                    "vs. 2. Rash",
                ),
            ]
        ),
        max_size=12,
    )
)
def test_numbers_and_letters_of_prose_are_no_list(parts):
    for prose in ("Seen: " + " ".join(parts), "\n".join(part for part in parts if part != "- 5")):
        assert statements.strip_numbering(prose) == prose


@hypothesis.given(list_like | st.text())
def test_statements_are_never_blank_and_have_no_outer_white_space(text):
    assert all(part and part == part.strip(SPACES) for part in statements.parse_statements(text))


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
            ("It was grade", "Then, at day 3. 4 days later", "Mossgout"),
            id="a number that opens a line is a marker, its repetition too",
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
            "Fever rose on day\n3. Then it fell on day\n5. It was Mossgout",
            ("Fever rose on day\n3. Then it fell on day\n5. It was Mossgout",),
            id="numbers that happen to open lines",
        ),
        pytest.param(
            "**1. Quillfever** — rash\n**2. Mossgout** — gout",
            ("**Quillfever** — rash", "**Mossgout** — gout"),
            id="emphasis of a statement stays whole",
        ),
        pytest.param(
            "- Likely:\n  1. Quillfever\n  2. Brindle rime\n- Not likely:\n  1. Mossgout",
            ("Likely:\n  1. Quillfever\n  2. Brindle rime", "Not likely:\n  1. Mossgout"),
            id="a numbered list within bullets",
        ),
        pytest.param(
            "1. Quillfever:\n- rash\n- cough\n2. Mossgout",
            ("Quillfever:\n- rash\n- cough", "Mossgout"),
            id="bullets within a numbered list",
        ),
        pytest.param(
            "For:\n1. Rash\n2. Cough\nAgainst:\n1. No fever\n2. No moss",
            ("For: Rash", "Cough\nAgainst:", "No fever", "No moss"),
            id="two lists",
        ),
        pytest.param(
            "1. Rash\n2) Cough\n3. Fever", ("Rash", "Cough", "Fever"), id="another mark in between"
        ),
        pytest.param(
            "1. No rash. 2. No cough.\n3. No fever. 4. So Mossgout.",
            ("No rash.", "No cough.", "No fever.", "So Mossgout."),
            id="two items on a line",
        ),
        pytest.param(
            "E. coli grew.\nF. alocis, too.", ("E. coli grew.\nF. alocis, too.",), id="E."
        ),
        pytest.param("1 - Week of fever.", ("1 - Week of fever.",), id="a lone number and a dash"),
        pytest.param("1. Quillfever\n2.\n3. Mossgout", ("Quillfever", "Mossgout"), id="no text"),
        pytest.param(
            "Rime shines.[1] Moss does not. [1] So it was rime. [2] Not moss. [3] It was rime.",
            ("Rime shines.[1] Moss does not. [1] So it was rime. [2] Not moss. [3] It was rime.",),
            id="numbers of articles that are cited",
        ),
        pytest.param(
            "(1)24-hour fever\n(2)5 rashes\n(3)“Moss”",
            ("24-hour fever", "5 rashes", "“Moss”"),
            id="statements that begin with a number",
        ),
        pytest.param("•“Rash”\n•(No) moss", ("“Rash”", "(No) moss"), id="a bullet and a quote"),
        pytest.param("1.\nQuillfever\r\n2.\nMossgout", ("Quillfever", "Mossgout"), id="own lines"),
        pytest.param("1. Quill\n  2. Moss", ("Quill", "Moss"), id="uneven indents"),
        pytest.param("1.5 mg\n2.5 mg", ("1.5 mg\n2.5 mg",), id="decimals open lines"),
    ],
)
def test_numbering_is_told_from_numbers(text, expected):
    assert statements.parse_statements(text) == expected
