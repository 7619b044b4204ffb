"""Named rules read trace and answer of a completion; two different answers are no answer."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcr_jax.completion import MODES, RULES, Completion, after_thoughts, parse, render

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
plain = st.text(max_size=60).filter(lambda t: not any(tag in t for tag in TAGS))
bits = [
    *TAGS,
    "<",
    ">",
    "/",
    "<answer",
    "< ANSWER >",
    "\n",
    "\0",
    "\\boxed{",
    "}",
    "Diagnosis: ",
    "**",
]
hostile = st.lists(st.one_of(st.sampled_from(bits), st.text())).map("".join)


@given(trace=plain, answer=plain.filter(str.strip), mode=st.sampled_from(MODES))
@example(trace="a < b, c > d & </answe", answer="Quillfever\nof the left nail", mode="strict")
def test_what_is_rendered_parses_back(trace, answer, mode):
    read = parse(render(trace, answer), mode)
    assert read == Completion(trace.strip(), answer.strip(), "strict")


@given(hostile, st.sampled_from(MODES), st.booleans())
def test_no_text_makes_parse_raise_and_what_is_read_stands_in_it(text, mode, ended):
    read = parse(text, mode, ended=ended)
    assert read.trace == read.trace.strip()
    assert all(line.strip() in text for line in read.trace.split("\n"))
    assert (read.rule is None) == (read.answer is None)
    if read.answer is not None:
        assert read.answer == read.answer.strip() != ""
        assert read.rule in (RULES if mode == "lenient" and ended else ("strict",))


@given(hostile, st.booleans())
def test_strict_reads_a_part_of_what_lenient_reads_and_the_same_trace(text, ended):
    strict, lenient = parse(text, "strict", ended=ended), parse(text, ended=ended)
    assert strict.trace == lenient.trace
    if strict.answer is not None:
        assert strict == lenient


@given(before=plain, after=plain, answers=st.lists(plain.filter(str.strip), max_size=3))
def test_strict_reads_exactly_one_answer(before, after, answers):
    text = before + "".join(f"<answer>{a}</answer>{after}" for a in answers)
    assert parse(text, "strict").answer == (answers[0].strip() if len(answers) == 1 else None)


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        ("<answer>Quillfever", "unclosed", "Quillfever"),
        ("nails\n<answer>\nQuillfever\n", "unclosed", "Quillfever"),
        ("nails\n<answer>Quillfever</answer", "unclosed", "Quillfever"),
        ("<ANSWER>Quillfever</Answer>", "tags", "Quillfever"),
        ("< answer > **Quillfever** < / answer >", "tags", "Quillfever"),
        ("<answer></answer><answer>Quillfever</answer>", "tags", "Quillfever"),
        ("<answer>Quillfever</answer><answer> *quillfever*. </answer>", "repeated", "Quillfever"),
        ("So it is $\\boxed{\\text{Quillfever}}$.", "boxed", "Quillfever"),
        ("\\boxed{Quillfever {type 2}}", "boxed", "Quillfever {type 2}"),
        ("blue nails\nFinal answer: Quillfever", "line", "Quillfever"),
        ("blue nails\n**Final Diagnosis:** _Quillfever_", "line", "Quillfever"),
        ("blue nails\n### Diagnosis\uff1a Quillfever\n\n", "line", "Quillfever"),
        ("blue nails\n\n**Most likely diagnosis:**\n\nQuillfever", "line", "Quillfever"),
        ("Diagnosis: Quillfever\nso\nFinal answer: quillfever.", "line", "Quillfever"),
        ("blue nails\n**Final Answer**: Quillfever", "line", "Quillfever"),
        ("blue nails\n__Diagnosis__ : Quillfever\n\n---\n```", "line", "Quillfever"),
        ("Diagnosis:\nA rash.\nAnd so\nFinal answer: Quillfever", "line", "Quillfever"),
        ("The final answer is: $\\boxed{Quillfever}$", "boxed", "Quillfever"),
        ("**Final answer:**\n$\\boxed{\\text{Quillfever}}$", "boxed", "Quillfever"),
    ],
)
def test_lenient_rules_read_what_strict_does_not(text, rule, answer):
    assert parse(text, "strict").answer is None
    assert parse(text) == Completion(parse(text, "strict").trace, answer, rule)
    assert parse(text, ended=False).answer is None  # what was cut off may be cut in the answer


@pytest.mark.promise("Two different answers are no answer.")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer></answer>",
        "<answer> \n </answer>",
        "Quillfever</answer>",
        "</answer>Quillfever<answer>",
        "<answer>Quillfever <answer>Mossgout</answer>",  # which of the two is not for us to say
        "<answer>Quillfever</answer> or <answer>Mossgout</answer>",
        "<answer>Quillfever\n\nIt may be Mossgout, for the nails are blue.",
        "My <answer> is " + "that the nails are blue and " * 20,
        "\\boxed{Quillfever} or \\boxed{Mossgout}",
        "\\boxed{Quillfever}\nFinal answer: Mossgout",
        "<answer>Quillfever</answer><answer>Mossgout</answer>\nFinal answer: Mossgout",
        "Diagnosis: Quillfever\nFinal answer: Mossgout",
        "Diagnosis: Quillfever\nbut the nails are not blue",
        "The differential diagnosis: Quillfever",
        "Final answer: " + "Quillfever " * 60,
        "<answer>Quillfever</answer></think>",
    ],
)
def test_no_answer_is_read_where_there_is_no_single_one(text):
    assert parse(text) == Completion(parse(text).trace, None, None)


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
        ("is <answer> due?</think><answer>Q</answer>", "is <answer> due?"),
        ("<answer>M</answer>? no</think>\n\nText.\n<answer>Q</answer>", "<answer>M</answer>? no"),
        ("<think>\n\n</think>\n\nblue nails\n<answer>Q</answer>", "blue nails"),
        ("</think>blue nails<answer>Q</answer>", "blue nails"),
        ("<think>blue</think>\n<think>nails</think><answer>Q</answer>", "blue\nnails"),
        ("blue</think> and <think>nails</think><answer>Q</answer>", "blue\nand\nnails"),
        ("blue nails\nFinal answer: Q", "blue nails"),
        ("The nails are blue, so \\boxed{Q}.", "The nails are blue, so"),
        ("Diagnosis: Q\nblue nails\n\\boxed{Q}", "Diagnosis: Q\nblue nails"),
    ],
)
def test_the_trace_is_what_stands_before_the_answer(text, trace):
    assert parse(text).trace == trace


@pytest.mark.promise(
    "The answer is read after the last `</think>`, so a reasoning model may mention the tags in "
    "its thoughts."
)
def test_thoughts_that_mention_tags_do_not_cost_a_reasoning_model_its_answer():
    text = "I must write <think> and <answer>. Not <answer>Mossgout</answer>!\n</think>\n\n"
    read = parse(text + "The nails are blue.\n<answer>Quillfever</answer>", "strict")
    assert read.answer == "Quillfever"
    assert read.trace.endswith("Not <answer>Mossgout</answer>!")


@pytest.mark.parametrize("mode", MODES)
def test_thoughts_that_were_cut_off_hold_no_answer(mode):
    text = "<think>Perhaps <answer>Mossgout</answer>, but the nai"
    assert parse(text, mode, ended=False).answer is None
    assert parse("<think>Blue.</think><answer>Q</answer> wh", mode, ended=False).answer == "Q"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a</think>b</think>\nc", "\nc"),
        ("<think>a</think>\n<think>b</think> c", " c"),
        ("a", "a"),
        ("<think>a", "<think>a"),  # unclosed: whoever reads on must see that
        ("a <think>b</think> c", "a <think>b</think> c"),
    ],
)
def test_thoughts_are_the_blocks_that_a_text_begins_with(text, rest):
    assert after_thoughts(text) == rest
