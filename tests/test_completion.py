"""A completion is read by one rule: exactly one answer, or none."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcr_jax.completion import Completion, parse, render

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
plain = st.text(max_size=60).filter(lambda t: not any(tag in t for tag in TAGS))
hostile = st.lists(
    st.one_of(st.sampled_from([*TAGS, "<", ">", "/", "<answer", "<ANSWER>", "\n", "\0"]), st.text())
).map("".join)


@given(trace=plain, answer=plain.filter(str.strip))
@example(trace="a < b, c > d & </answe", answer="Quillfever\nof the left nail")
def test_what_is_rendered_parses_back(trace, answer):
    assert parse(render(trace, answer)) == Completion(trace.strip(), answer.strip())


@given(hostile)
def test_no_text_makes_parse_raise_and_fields_are_stripped_parts_of_it(text):
    read = parse(text)
    assert read.trace in text
    assert read.trace == read.trace.strip()
    if read.answer is not None:
        assert read.answer == read.answer.strip() != ""
        assert re.search(rf"<answer>\s*{re.escape(read.answer)}\s*</answer>", text)


@given(before=plain, after=plain, answers=st.lists(plain.filter(str.strip), max_size=3))
def test_only_exactly_one_answer_counts(before, after, answers):
    text = before + "".join(f"<answer>{a}</answer>{after}" for a in answers)
    assert parse(text).answer == (answers[0].strip() if len(answers) == 1 else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer></answer>",
        "<answer> \n </answer>",
        "<answer>Quillfever",
        "Quillfever</answer>",
        "</answer>Quillfever<answer>",
        "<ANSWER>Quillfever</ANSWER>",
        "<answer>Quillfever</answer><answer>Quillfever</answer>",
        "<answer>Quillfever <answer>Mossgout</answer>",  # which of the two is not for us to say
        "<answer></answer><answer>Quillfever</answer>",
    ],
)
def test_no_answer_is_read_where_there_is_not_exactly_one(text):
    assert parse(text).answer is None


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        ("<think>\nblue nails\n</think>\n<answer>Q</answer>", "blue nails"),
        ("blue nails</think><answer>Q</answer>", "blue nails"),
        ("blue nails <answer>Q</answer> after", "blue nails"),
        ("<think>blue nails<answer>Q</answer>", "blue nails"),
        ("<think>blue nails, cut sho", "blue nails, cut sho"),
        ("blue nails", "blue nails"),
        ("<answer>Q</answer>", ""),
    ],
)
def test_the_trace_is_what_stands_before_the_answer(text, trace):
    assert parse(text).trace == trace
