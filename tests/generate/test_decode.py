"""The engine writes what the plain model would, and a sample never depends on its neighbours."""

import dataclasses
import itertools
import logging

import jax
import numpy as np
import pytest
from flax import nnx

from mcr_jax.generate.engine.decode import Prompts, Shape, sampler
from mcr_jax.model import store

SHAPE = Shape(prompts=3, samples=4, prompt_tokens=8, max_tokens=6)
PROMPTS = {11: [3, 1, 4, 1, 5, 9, 2, 6], 22: [7], 33: [8, 2, 8, 1], 44: [5, 5, 0]}  # by case
NO_EOS = (1000,)


@pytest.fixture(scope="module")
def model(tiny_shape):
    """Untrained, but attending sharply: its answers turn on every token and every position."""
    made = store.untrained(dataclasses.replace(tiny_shape, tied=False), 5)
    for weights, factor in ((made.layers.q, 4), (made.layers.o, 8)):
        weights[...] = factor * weights[...]
    return made


@pytest.fixture(scope="module")
def answer(model):
    """Answers a batch with any set of end tokens; one program."""
    return sampler(model, SHAPE, NO_EOS, 0)


@pytest.fixture(scope="module")
def alone(model):
    """case -> tokens by recomputing everything for every token, greedily."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))

    def greedy(case: int, count: int) -> list[int]:
        tokens = list(PROMPTS[case])
        for _ in range(count):
            row = np.zeros((1, SHAPE.prompt_tokens + SHAPE.max_tokens), np.int32)
            row[0, : len(tokens)] = tokens
            tokens.append(int(np.argmax(forward(params, row)[0, len(tokens) - 1])))
        return tokens[len(PROMPTS[case]) :]

    return greedy


def batch(*cases: int, samples=(0, 1, 2, 3), temperature=1.0, top_p=1.0, limits=(6, 6, 6)):
    """A batch of `cases`, filled up with idle prompts."""
    P, N, T = SHAPE.prompts, SHAPE.samples, SHAPE.prompt_tokens
    made = Prompts(
        tokens=np.zeros((P, T), np.int32),
        lengths=np.ones(P, np.int32),
        cases=np.zeros(P, np.uint32),
        samples=np.zeros((P, N), np.int32),
        wanted=np.zeros((P, N), bool),
        temperature=np.full(P, temperature, np.float32),
        top_p=np.full(P, top_p, np.float32),
        limits=np.array(limits, np.int32),
    )
    for p, case in enumerate(cases):
        ids = PROMPTS[case]
        made.tokens[p, : len(ids)], made.lengths[p], made.cases[p] = ids, len(ids), case
        made.samples[p, : len(samples)] = samples
        made.wanted[p, : len(samples)] = True
    return made


def written(answers) -> list[list[list[int]]]:
    tokens, counts, _ = (np.asarray(x) for x in answers)
    return [
        [row[:count].tolist() for row, count in zip(rows, of, strict=True)]
        for rows, of in zip(tokens, counts, strict=True)
    ]


def test_greedy_answers_equal_recomputation_without_a_cache(answer, alone):
    texts = written(answer(batch(11, 22, 33, temperature=0.0)))
    for case, samples in zip((11, 22, 33), texts, strict=True):
        assert samples == [alone(case, 6)] * 4
    assert all(len(set(samples[0])) > 2 for samples in texts)  # no token is merely repeated


def test_an_answer_ends_with_its_end_token_even_if_that_is_its_first(model, alone):
    expected = {case: alone(case, 6) for case in (11, 22, 33)}
    eos = (expected[11][0], expected[22][2])
    answers = sampler(model, SHAPE, eos, 0)(batch(11, 22, 33, temperature=0.0))
    texts = written(answers)
    for p, case in enumerate((11, 22, 33)):
        ends = [i for i, token in enumerate(expected[case]) if token in eos]
        stop = ends[0] + 1 if ends else 6
        assert texts[p] == [expected[case][:stop]] * 4
        assert (np.asarray(answers.ended)[p] == bool(ends)).all()
    assert texts[0] == [expected[11][:1]] * 4
    for p, n in np.ndindex(3, 4):  # nothing stands behind the end
        assert not np.asarray(answers.tokens)[p, n, len(texts[p][n]) :].any()


def test_an_answer_stops_at_its_prompts_limit(answer):
    whole = written(answer(batch(11, 22, 33)))
    answers = answer(batch(11, 22, 33, limits=(1, 4, 6)))
    for p, limit in enumerate((1, 4, 6)):
        assert written(answers)[p] == [tokens[:limit] for tokens in whole[p]]
    assert not np.asarray(answers.ended).any()


def test_what_is_not_wanted_is_not_written(answer):
    answers = answer(batch(11, samples=(2,)))
    assert np.asarray(answers.counts).tolist() == [[6, 0, 0, 0], [0] * 4, [0] * 4]
    assert not np.asarray(answers.tokens)[1:].any()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"temperature": 0.6}], ids=str)
def test_a_sample_is_the_same_with_any_batch_mates_in_any_slot(answer, options):
    expected = {case: written(answer(batch(case, **options)))[0] for case in PROMPTS}
    for cases in itertools.permutations(PROMPTS, 3):
        texts = written(answer(batch(*cases, **options)))
        assert texts == [expected[case] for case in cases]


@pytest.mark.parametrize("samples", [(3,), (2, 0), (3, 2, 1, 0), (1, 3)])
def test_a_sample_is_the_same_whichever_others_of_its_case_are_wanted(answer, samples):
    everything = written(answer(batch(33)))[0]
    some = written(answer(batch(44, 33, samples=samples)))[1]
    assert some[: len(samples)] == [everything[index] for index in samples]


def test_samples_of_a_case_differ_and_so_do_cases_with_one_prompt(model, answer):
    texts = written(answer(batch(11, 22, 33)))
    assert all(len({tuple(tokens) for tokens in samples}) == 4 for samples in texts)
    twin = written(answer(batch(11)._replace(cases=np.full(3, 99, np.uint32))))[0]
    assert not {tuple(tokens) for tokens in twin} & {tuple(tokens) for tokens in texts[0]}
    other_seed = sampler(model, SHAPE, NO_EOS, 1)(batch(11))
    assert written(other_seed)[0] != texts[0]


def test_one_program_answers_every_batch_of_every_model_of_a_kind(model, caplog):
    shape = dataclasses.replace(SHAPE, max_tokens=SHAPE.max_tokens - 1)  # new to this process
    fresh = sampler(model, shape, NO_EOS, 0)
    twin = store.untrained(model.config, 6)
    limits = (2, 5, 5)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        fresh(batch(11, 22, 33, limits=limits))
        first = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
        caplog.clear()
        fresh(batch(44, temperature=0.0, samples=(1,), limits=limits))
        fresh(batch(33, 22, top_p=0.5, limits=limits))
        sampler(twin, shape, NO_EOS, 3)(batch(11, limits=limits))
        later = [r.getMessage() for r in caplog.records if "_answer" in r.getMessage()]
    assert any("_answer" in message for message in first)
    assert later == []
