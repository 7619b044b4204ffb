"""A training example is prompt and target of one case, whole or left out."""

import numpy as np
import pytest

from mcr_jax import completion
from mcr_jax.data import example as example_lib


@pytest.fixture(scope="module")
def case(clinic_cases):
    return clinic_cases["train"][0]


@pytest.fixture(scope="module")
def made(case, clinic_prompt, clinic_tokenizer):
    return example_lib.example(case, clinic_prompt, clinic_tokenizer)


def test_the_prompt_shows_the_presentation_and_neither_title_nor_label(case, clinic_prompt):
    (message,) = example_lib.prompt_messages(case, clinic_prompt)
    assert message["role"] == "user"
    assert case.case_prompt in message["content"]
    for hidden in (case.title, case.final_diagnosis, case.journal, case.diagnostic_reasoning):
        assert hidden not in message["content"]


def test_the_trained_tokens_are_the_statements_and_the_diagnosis(made, case, clinic_tokenizer):
    target = clinic_tokenizer.decode(made.ids[made.trained].tolist())
    read = completion.parse(target)
    assert read.trace.split("\n") == list(case.statements)
    assert read.answer == case.final_diagnosis


def test_a_trace_takes_the_place_of_the_statements_and_of_nothing_else(
    case, made, clinic_prompt, clinic_tokenizer
):
    trace = "Violet nail moons leave one disease."
    stitched = example_lib.example(case, clinic_prompt, clinic_tokenizer, trace)
    read = completion.parse(clinic_tokenizer.decode(stitched.ids[stitched.trained].tolist()))
    assert (read.trace, read.answer) == (trace, case.final_diagnosis)
    np.testing.assert_array_equal(stitched.ids[~stitched.trained], made.ids[~made.trained])


def test_the_untrained_tokens_are_the_prompt_of_sampling(
    made, case, clinic_prompt, clinic_tokenizer
):
    prompt = clinic_tokenizer.encode_prompt(example_lib.prompt_messages(case, clinic_prompt))
    np.testing.assert_array_equal(made.ids[~made.trained], prompt)
    assert not made.trained[: len(prompt)].any()
    assert made.ids[-1] == clinic_tokenizer.eos_ids[0]
    assert made.trained[-1]
    assert made.fingerprint == case.fingerprint


def test_prompt_and_answer_are_tokenized_as_one_text(made, case, clinic_prompt, clinic_tokenizer):
    asked, answered = (turn["content"] for turn in example_lib.conversation(case, clinic_prompt))
    text = f"<|user|>\n{asked}\n<|assistant|>\n{answered}"  # as this tokenizer lays it out
    assert made.ids.tolist() == [*clinic_tokenizer.encode(text), clinic_tokenizer.eos_ids[0]]


def test_a_tokenizer_is_fitted_on_what_the_model_reads_and_writes(
    clinic_cases, clinic_prompt, made, clinic_tokenizer
):
    texts = list(example_lib.training_texts(clinic_cases["train"], clinic_prompt))
    assert len(texts) == 2 * len(clinic_cases["train"])
    assert texts[1] == clinic_tokenizer.decode(made.ids[made.trained].tolist())
