"""Prompts are loaded by name, replaced by the user's files, and filled in by one rule."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax import prompts
from mcr_jax.errors import UsageError

FIELDS = {
    "diagnose": {"case_prompt"},
    "judge_diagnosis": {"reference", "predicted"},
    "judge_reasons": {"statements", "trace"},
    "judge_distortion": {"statements", "trace"},
}


def test_every_shipped_prompt_has_its_fields():
    assert {name: set(prompts.load(name).fields) for name in FIELDS} == FIELDS
    assert set(FIELDS) <= set(prompts.names())


def test_prompt_for_candidates_asks_for_what_completions_are_read_by():
    text = prompts.load("diagnose").render(case_prompt="The ribs hum.")
    assert all(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>"))


@pytest.mark.parametrize("name", ["diagnose", "stitch"])
def test_what_is_to_be_done_stands_behind_what_is_shown(name):
    """A small published model goes on with what it reads last: SmolLM2 retold its instructions."""
    prompt = prompts.load(name)
    (field,) = prompt.fields
    before, _, behind = prompt.text.partition(f"{{{{{field}}}}}")
    assert len(before) < 100 < len(behind)


@pytest.mark.parametrize("name", ["judge_diagnosis", "judge_reasons", "judge_distortion"])
def test_judges_read_what_is_stable_before_what_is_not(name):
    text = prompts.load(name).text
    first = min(text.index(f"{{{{{field}}}}}") for field in FIELDS[name])
    assert first > 0.8 * len(text)


def test_digest_is_of_the_text_alone(tmp_path):
    shipped = prompts.load("diagnose")
    (tmp_path / "diagnose.txt").write_text(shipped.text + "\r\n\n")
    assert prompts.load("diagnose", str(tmp_path)).digest == shipped.digest
    (tmp_path / "diagnose.txt").write_text(shipped.text + " ")
    assert prompts.load("diagnose", str(tmp_path)).digest != shipped.digest


def test_users_folder_replaces_prompts_one_by_one(tmp_path):
    (tmp_path / "diagnose.txt").write_text("Ours: {{case_prompt}}\n", encoding="utf-8")
    assert prompts.load("diagnose", str(tmp_path)).render(case_prompt="“é”") == "Ours: “é”"
    assert prompts.load("judge_reasons", str(tmp_path)) == prompts.load("judge_reasons")


@pytest.mark.parametrize("name", ["", "judge", "../diagnose", "diagnose.txt"])
def test_unknown_name_is_a_usage_error_even_where_a_file_has_it(tmp_path, name):
    (tmp_path / "judge.txt").write_text("hello")
    with pytest.raises(UsageError, match="judge_diagnosis"):
        prompts.load(name, str(tmp_path))


@pytest.mark.parametrize("text", ["Same?", "{{reference}}", "{{reference}} {{predicted}} {{x}}"])
def test_a_users_prompt_with_other_fields_is_refused_when_it_is_loaded(tmp_path, text):
    (tmp_path / "judge_diagnosis.txt").write_text(text)
    with pytest.raises(UsageError, match=r"judge_diagnosis.txt: .*needs {{predicted}}, {{r"):
        prompts.load("judge_diagnosis", str(tmp_path))


def test_folder_or_file_that_cannot_be_read_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        prompts.load("diagnose", str(tmp_path / "missing"))
    (tmp_path / "diagnose.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        prompts.load("diagnose", str(tmp_path))
    (tmp_path / "judge_reasons.txt").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        prompts.load("judge_reasons", str(tmp_path))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, r"p needs a value for \{\{a\}\}, \{\{b\}\}"),
        ({"a": "1"}, r"p needs a value for \{\{b\}\}"),
        ({"a": "1", "b": "2", "c": "3"}, r"p has no place for \{\{c\}\}"),
    ],
)
def test_missing_or_unknown_field_is_an_error_that_names_the_prompt(values, says):
    with pytest.raises(UsageError, match=says):
        prompts.Prompt("p", "{{a}} and {{b}}").render(**values)


@given(a=st.text(), b=st.text())
def test_whatever_a_value_holds_stays_text(a, b):
    prompt = prompts.Prompt("p", "{{a}}|{{b}}|{{a}}")
    assert prompt.render(a=a, b=b) == f"{a}|{b}|{a}"
    assert prompt.render(a="{{b}}{b}%(b)s\\1$b" + a, b=b).startswith("{{b}}{b}%(b)s\\1$b" + a)


def test_braces_that_are_no_field_stay_as_they_are():
    assert prompts.Prompt("p", '{"x": {}} {{A}} {{ a }} {{a}}').render(a="1") == (
        '{"x": {}} {{A}} {{ a }} 1'
    )


@pytest.mark.parametrize(
    "closing",
    ["</trace>", "</TRACE>", "< / trace >", "<\n/trace>", "<trace>", "<\u200b/trace>", "<_/trace"],
)
def test_no_value_can_write_a_tag(closing):
    assert "<" not in prompts.inert(closing)


def test_numbers_below_a_limit_stay_readable():
    text = "lactate <2, pH < 7.1 and a <<3 ratio"
    assert prompts.inert(text) == text


@given(st.text(alphabet=string.printable + "‹é\u200b"))
def test_inert_text_has_the_same_length_and_stays_inert(text):
    once = prompts.inert(text)
    assert len(once) == len(text)
    assert prompts.inert(once) == once
    assert once.replace("‹", "<") == text.replace("‹", "<")
