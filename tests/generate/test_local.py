"""The local model keeps the contract: text in, typed answers out, nothing truncated silently."""

import dataclasses
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Request
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.local import LocalModel, memory_errors
from mcr_jax.model import store
from mcr_jax.model.sharding import make_mesh, one_device

SHAPE = Shape(slots=8, share=4, prompt_tokens=24, max_tokens=12, chunk=5)
CASES, SAMPLES = 5, 6


@pytest.fixture(scope="module")
def make(tiny_shape, clinic_tokenizer):
    """Makes a local model of uniformly random tokens that ends after about ten of them."""
    config = dataclasses.replace(tiny_shape, vocab_size=clinic_tokenizer.vocab_size, tied=False)
    only_first = np.eye(1, config.width, dtype=np.float32)[0]
    eos = np.eye(config.vocab_size, dtype=np.float32)[clinic_tokenizer.eos_ids[0]]

    def made(shape=SHAPE, *, seed=0, weights=0, mesh=None, tokenizer=clinic_tokenizer, heat=1.0):
        mesh = mesh or one_device()
        model = store.untrained(config, weights, mesh)
        table = model.embedding[...].at[:, 0].set(40.0)  # the first coordinate is 1 after norms
        norm = heat * only_first / config.width**0.5  # and the only one that the head reads
        head = np.outer(eos, only_first) * np.log(config.vocab_size / 9)
        for parameter, values in (
            *((model.embedding, table), (model.final_norm, norm)),
            (model.head, head.astype(np.float32)),
        ):
            parameter[...] = jax.device_put(values, parameter[...].sharding)
        return LocalModel(model, tokenizer, shape, seed, mesh)

    return made


@pytest.fixture(scope="module")
def local(make):
    return make()


def request(number: int, content: str = "Violet nails?", n: int = SAMPLES, **options) -> Request:
    options = {"temperature": 1.0, "max_tokens": 12} | options
    messages = ({"role": "user", "content": content},)
    return Request(key=f"{number:08x}" + "0" * 56, messages=messages, n=n, **options)


def replies(local, *requests) -> dict:
    found = list(local.generate(requests))
    assert len({(r.key, r.index) for r in found}) == len(found)
    return {(r.key, r.index): r for r in found}


@pytest.fixture(scope="module")
def five(local):
    requests = [request(n) for n in range(CASES)]
    return requests, replies(local, *requests)


def test_every_wanted_answer_comes_once_with_its_cost(five, clinic_tokenizer):
    requests, found = five
    assert found.keys() == {(r.key, i) for r in requests for i in range(SAMPLES)}
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


def test_the_log_probability_is_the_mean_of_what_the_model_gives_each_token(five, clinic_tokenizer):
    """The end token has weight V / 9, each of the V - 1 others has weight 1."""
    V = clinic_tokenizer.vocab_size
    total = np.log(V - 1 + V / 9)
    for reply in five[1].values():
        ended = reply.outcome is Outcome.OK
        expected = -total + ended * np.log(V / 9) / reply.usage.output
        # Approximate: the other coordinates of the vector are small, not zero.
        assert reply.mean_logprob == pytest.approx(expected, abs=0.01)


def test_temperature_changes_the_draws_and_not_their_log_probabilities(local, clinic_tokenizer):
    V = clinic_tokenizer.vocab_size
    (reply,) = replies(local, request(1, n=1, temperature=0.0)).values()
    assert (reply.text, reply.usage.output) == ("", 1)  # the end token is the most likely
    assert reply.mean_logprob == pytest.approx(np.log(V / 9) - np.log(V - 1 + V / 9), abs=0.01)
    (reply,) = replies(local, request(1, n=1, temperature=9.0, top_k=1)).values()
    assert (reply.text, reply.usage.output) == ("", 1)


def test_no_text_follows_the_end_token_or_the_limit(local, five):
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
        long = [found[r.key, i].text for i in range(SAMPLES) if found[r.key, i].usage.output > 3]
        assert len(long) > 2
        assert len(set(long)) == len(long)


def test_an_answer_does_not_depend_on_order_other_requests_or_wanted_indices(local, five):
    requests, whole = five
    backwards = replies(local, *reversed(requests))
    assert backwards == whole
    some = dataclasses.replace(requests[3], indices=(5, 2))
    other = request(77, "Green noons for nine days.", n=3)
    found = replies(local, other, some)
    assert {i for key, i in found if key == some.key} == {2, 5}
    for index in (2, 5):
        assert found[some.key, index] == whole[some.key, index]


@pytest.fixture(scope="module")
def other(make):
    """Makes `local` with other sizes of the engine."""
    return make(dataclasses.replace(SHAPE, slots=16, share=3, chunk=64))


def test_an_answer_is_the_same_with_any_slots_share_and_chunk(other, five):
    requests, whole = five
    assert same_answers(replies(other, *requests), whole)


@pytest.mark.parametrize(("data", "tensor"), quick(1, [(2, 1), (2, 2)]))
def test_an_answer_is_the_same_on_any_mesh(make, five, data, tensor):
    requests, whole = five
    there = make(mesh=make_mesh(data, 1, tensor, jax.devices()[: data * tensor]))
    assert same_answers(replies(there, *requests), whole)


def same_answers(found, expected) -> bool:
    """Returns whether replies are equal up to rounding of log-probabilities."""
    assert found.keys() == expected.keys()
    for place, reply in found.items():
        known = expected[place]
        assert reply.mean_logprob == pytest.approx(known.mean_logprob, abs=1e-5)
        assert dataclasses.replace(reply, mean_logprob=known.mean_logprob) == known
    return True


def test_a_prompt_that_is_too_long_has_its_outcome_and_no_text(local, five):
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


def test_more_tokens_than_the_engine_has_room_for_are_refused_in_one_line(local):
    with pytest.raises(McrError, match=r"max_tokens=13, and the engine has room for 12") as raised:
        list(local.generate([request(1, max_tokens=13)]))
    assert "\n" not in str(raised.value)


def stops_in(five) -> tuple[str, str]:
    """Returns two texts of some of the answers, of one and of three characters."""
    texts = [reply.text for reply in five[1].values() if len(reply.text) > 8]
    return texts[0][3], texts[-1][4:7]


def test_an_answer_ends_right_behind_the_first_stop_string(local, five):
    requests, whole = five
    stops = stops_in(five)
    found = replies(local, *(dataclasses.replace(r, stop=stops) for r in requests))
    stopped = 0
    for place, reply in found.items():
        before = whole[place]
        ends = [before.text.find(stop) + len(stop) for stop in stops if stop in before.text]
        if not ends:
            assert reply == before
            continue
        stopped += 1
        assert (reply.text, reply.outcome) == (before.text[: min(ends)], Outcome.OK)
        assert reply.usage.output <= before.usage.output
    assert 2 < stopped < len(found)


def test_stops_do_not_depend_on_the_length_of_chunks(other, local, five):
    requests = [dataclasses.replace(r, stop=stops_in(five)) for r in five[0]]
    assert same_answers(replies(other, *requests), replies(local, *requests))


def test_ids_that_the_tokenizer_lacks_have_no_text_and_are_no_error(make, clinic_tokenizer):
    """Embeddings are often padded to more ids than the tokenizer has."""

    class Fewer:
        vocab_size = 40
        fingerprint = clinic_tokenizer.fingerprint
        eos_ids = clinic_tokenizer.eos_ids
        encode_prompt = clinic_tokenizer.encode_prompt

        def decode(self, ids):
            assert all(i < self.vocab_size for i in ids)
            return clinic_tokenizer.decode(ids)

    requests = [request(n, stop=("never written",)) for n in range(3)]
    found = replies(make(tokenizer=Fewer()), *requests)
    assert max(reply.usage.output for reply in found.values()) == 12


def test_a_deleted_model_frees_its_weights(make):
    """Otherwise the next model would need memory beside it."""
    local = make()
    assert len(replies(local, request(1, stop=("never",)))) == SAMPLES
    weights = [weakref.ref(x) for x in jax.tree.leaves(local._engine._weights)]
    model = weakref.ref(local)
    del local
    assert model() is None
    gc.collect()  # as `load` does before the next one
    assert not any(x() is not None for x in weights)


def test_a_device_out_of_memory_is_one_line():
    with pytest.raises(McrError, match=r"^out of memory .* are kept$") as raised, memory_errors():
        jax.block_until_ready(jnp.zeros(1 << 50))
    assert "\n" not in str(raised.value)


def test_a_model_that_computes_no_numbers_is_refused_in_a_line(make):
    with pytest.raises(McrError, match="probabilities are not numbers") as raised:
        list(make(heat=np.nan).generate([request(1)]))
    assert "\n" not in str(raised.value)


def test_the_status_shows_tokens_per_second_and_busy_slots(local):
    for _ in range(2):  # each run begins anew
        lines = [local.status() for _ in local.generate([request(n) for n in range(CASES)])]
        shown = [re.search(r"(\d+) of 8 slots$", line) for line in lines]
        assert all(shown) and 4 <= max(int(match[1]) for match in shown) <= 8
        assert any(" tokens/s, " in line for line in lines)


def test_the_identity_depends_on_all_that_changes_answers_and_on_nothing_else(make, local):
    same = {"slots": 16, "share": 2, "chunk": 64, "max_tokens": 20}
    assert make(dataclasses.replace(SHAPE, **same)).identity == local.identity
    others = [
        make(weights=1),
        make(seed=1),
        make(dataclasses.replace(SHAPE, prompt_tokens=32)),
        make(dataclasses.replace(SHAPE, kv_dtype="int8")),
    ]
    assert len({local.identity, *(other.identity for other in others)}) == 5
