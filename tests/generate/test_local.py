"""The local model keeps the contract: text in, typed answers out, nothing cut in silence."""

import dataclasses

import numpy as np
import pytest

from mcr_jax.generate.api import Outcome, Request
from mcr_jax.generate.engine.decode import Shape
from mcr_jax.generate.local import LocalModel
from mcr_jax.model import store

SHAPE = Shape(prompts=2, samples=10, prompt_tokens=24, max_tokens=12)


@pytest.fixture(scope="module")
def decoder(tiny_shape, clinic_tokenizer):
    """Writes any token at random and ends its answer at about every tenth."""
    shape = dataclasses.replace(tiny_shape, vocab_size=clinic_tokenizer.vocab_size, tied=False)
    made = store.untrained(shape, 0)
    only_first = np.eye(1, shape.width, dtype=np.float32)[0]
    made.embedding[...] = made.embedding[...].at[:, 0].set(40.0)  # the first coordinate is 1 …
    made.final_norm[...] = only_first / shape.width**0.5  # … and alone reaches the head
    eos = np.eye(shape.vocab_size, dtype=np.float32)[clinic_tokenizer.eos_ids[0]]
    made.head[...] = np.outer(eos, only_first) * np.log(shape.vocab_size / 9)
    return made


@pytest.fixture(scope="module")
def local(decoder, clinic_tokenizer):
    return LocalModel(decoder, clinic_tokenizer, SHAPE, 0)


def request(number: int, content: str = "Violet nails?", n: int = 10, **options) -> Request:
    options = {"temperature": 1.0, "max_tokens": 12} | options
    messages = ({"role": "user", "content": content},)
    return Request(key=f"{number:08x}" + "0" * 56, messages=messages, n=n, **options)


def replies(local, *requests) -> dict:
    found = list(local.generate(requests))
    assert len({(r.key, r.index) for r in found}) == len(found)
    return {(r.key, r.index): r for r in found}


@pytest.fixture(scope="module")
def five(local):
    requests = [request(n) for n in range(5)]
    return requests, replies(local, *requests)


def test_every_wanted_answer_comes_once_with_its_cost(five, clinic_tokenizer):
    requests, found = five
    assert found.keys() == {(r.key, i) for r in requests for i in range(10)}
    prompt = len(clinic_tokenizer.encode_prompt(requests[0].messages))
    assert {reply.usage.prompt for reply in found.values()} == {prompt}
    assert all(1 <= reply.usage.output <= 12 for reply in found.values())
    assert len({reply.model_version for reply in found.values()}) == 1


def test_an_answer_that_ended_is_ok_and_one_at_the_limit_is_truncated(five):
    outcomes = [reply.outcome for reply in five[1].values()]
    assert set(outcomes) == {Outcome.OK, Outcome.TRUNCATED}
    for reply in five[1].values():
        if reply.outcome is Outcome.TRUNCATED:
            assert reply.usage.output == 12
    assert any(r.usage.output < 12 for r in five[1].values() if r.outcome is Outcome.OK)


def test_an_answer_that_ends_at_once_is_ok_and_empty(local):
    found = replies(local, *(request(n) for n in range(12)))
    at_once = [r for r in found.values() if r.usage.output == 1 and r.outcome is Outcome.OK]
    assert at_once
    assert {reply.text for reply in at_once} == {""}


def test_nothing_behind_the_end_and_nothing_behind_the_limit_is_in_the_text(local, five):
    requests, whole = five
    short = replies(local, *(dataclasses.replace(r, max_tokens=5) for r in requests))
    for place, reply in short.items():
        if whole[place].usage.output <= 5 and whole[place].outcome is Outcome.OK:
            assert (reply.outcome, reply.text) == (Outcome.OK, whole[place].text)
        else:
            assert (reply.outcome, reply.usage.output) == (Outcome.TRUNCATED, 5)
            assert whole[place].text.startswith(reply.text.rstrip("\ufffd"))


def test_the_samples_of_a_case_differ(five):
    requests, found = five
    for r in requests:
        long = [found[r.key, i].text for i in range(10) if found[r.key, i].usage.output > 3]
        assert len(long) > 2
        assert len(set(long)) == len(long)


def test_an_answer_is_the_same_in_any_order_with_any_mates_and_any_subset(local, five):
    requests, whole = five
    backwards = replies(local, *reversed(requests))
    assert backwards == whole
    some = dataclasses.replace(requests[3], indices=(7, 2))
    stranger = request(77, "Green noons for nine days.", n=3)
    found = replies(local, stranger, some)
    assert {i for key, i in found if key == some.key} == {2, 7}
    for index in (2, 7):
        assert found[some.key, index] == whole[some.key, index]


def test_a_prompt_without_room_is_told_so_and_has_no_text(local, five):
    requests, whole = five
    long = request(88, "Green noons and " * 20, n=3)
    found = replies(local, requests[0], long, requests[1])
    for index in range(3):
        reply = found[long.key, index]
        assert (reply.outcome, reply.text) == (Outcome.PROMPT_TOO_LONG, "")
        assert reply.error.endswith("prompt tokens, room for 24")
    assert found[requests[1].key, 4] == whole[requests[1].key, 4]


def test_a_prompt_that_just_fits_is_answered(local, clinic_tokenizer):
    content = ""
    while len(clinic_tokenizer.encode_prompt(request(1, content + "x").messages)) <= 24:
        content += "x"
    (reply,) = replies(local, request(1, content, n=1)).values()
    assert reply.usage.prompt == 24
    assert reply.outcome in (Outcome.OK, Outcome.TRUNCATED)


def test_more_samples_than_a_batch_holds_are_refused(local):
    with pytest.raises(ValueError, match="11 samples, room for 10"):
        list(local.generate([request(1, n=11)]))


def test_the_identity_follows_from_all_that_decides_an_answer(local, decoder, clinic_tokenizer):
    def identity(model=decoder, shape=SHAPE, seed=0):
        return LocalModel(model, clinic_tokenizer, shape, seed).identity

    other = store.untrained(decoder.config, 1)
    wider = dataclasses.replace(SHAPE, prompts=3)
    names = [identity(), identity(other), identity(shape=wider), identity(seed=1)]
    assert len(set(names)) == 4
    assert identity() == local.identity
