"""The real openai client with a server on loopback: every ending has its outcome."""

import asyncio
import json
import re
import typing

import pytest

from mcr_jax import completion, model_specs
from mcr_jax import config as configs
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Outcome, Request, Usage
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.openai import BASE_URL, OpenAI
from mcr_jax.generate.pace import Fault
from mcr_jax.judges import reasons
from mcr_jax.model_specs import Endpoint

KEY = "OPENAI_API_KEY"
SCHEMA = {"type": "object", "properties": {"same": {"type": "boolean"}}, "required": ["same"]}


def ask(**options):
    return Request(key="k", messages=({"role": "user", "content": "Which hum?"},), **options)


def every(generator, request):
    async def call():
        try:
            return [await generator.call(request, index) for index in request.wanted]
        finally:
            await generator.close()

    return asyncio.run(call())


def one(generator, request=None):
    (reply,) = every(generator, request or ask())
    return reply


def test_text_usage_version_and_log_probabilities(openai):
    openai.then(openai.says("It is rime.", logprobs=[-0.5, -1.5]))
    reply = one(OpenAI("m"))
    assert (reply.outcome, reply.text, reply.model_version) == (
        Outcome.OK,
        "It is rime.",
        "loopback-1",
    )
    assert reply.usage == Usage(prompt=11, output=12, cached=3)
    assert reply.mean_logprob == -1.0


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_the_trace_whichever_field_it_comes_in(openai, field):
    said = "<answer>Sable gout</answer>"
    openai.then(openai.says(said, thoughts="It hums.", field=field))
    read = completion.parse(one(OpenAI("m")).text)
    assert (read.trace, read.answer) == ("It hums.", "Sable gout")


def test_reasoning_that_the_limit_cut_is_no_answer(openai):
    openai.then(openai.says("", thoughts="It hums; <answer>rime</answer>?", finish="length"))
    reply = one(OpenAI("m"))
    assert reply.outcome is Outcome.TRUNCATED
    assert completion.parse(reply.text, ended=False).answer is None


def test_reasoning_of_a_judge_is_no_part_of_its_json(openai):
    openai.then(openai.says('{"same": true}', thoughts="Let me see."))
    assert one(OpenAI("m"), ask(schema=SCHEMA)).text == '{"same": true}'


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        (lambda s: s.says("x", finish="length"), Outcome.TRUNCATED, "token limit"),
        (lambda s: s.says("x", finish="content_filter"), Outcome.BLOCKED, "blocked"),
        (lambda s: s.says("", refusal="I can\x1b not"), Outcome.BLOCKED, "I can? not"),
        (lambda s: s.says("x", finish="tool_calls"), Outcome.MALFORMED, "tool_calls"),
        (lambda s: s.says("x", finish=None), Outcome.MALFORMED, "None"),
        (lambda s: s.says(""), Outcome.MALFORMED, "empty"),
        (lambda s: s.replies({"choices": []}), Outcome.INFRA_ERROR, "without an answer"),
        (lambda s: s.replies({"error": {"message": f"{s.key}!"}}), Outcome.INFRA_ERROR, "[key]!"),
        (lambda s: s.replies({"choices": [7]}), Outcome.MALFORMED, "finish reason"),
        (lambda s: s.raw(b"<html>"), Outcome.INFRA_ERROR, "unreadable"),
        (lambda s: s.raw(b"[1]"), Outcome.INFRA_ERROR, "without an answer"),
        (lambda s: s.raw(b"[" * 100_000), Outcome.INFRA_ERROR, "unreadable"),
        (lambda s: s.cuts(), Outcome.INFRA_ERROR, ""),
        (lambda s: s.drops(), Outcome.INFRA_ERROR, ""),
        (
            lambda s: s.error(
                400, "maximum context length is 8192", code="context_length_exceeded"
            ),
            Outcome.PROMPT_TOO_LONG,
            "8192",
        ),
        (
            lambda s: s.error(400, "the content management policy", code="content_filter"),
            Outcome.BLOCKED,
            "policy",
        ),
        (lambda s: s.error(500, "oops"), Outcome.INFRA_ERROR, "HTTP 500"),
    ],
)
def test_every_ending_has_its_outcome(openai, answer, outcome, error):
    openai.then(answer(openai))
    reply = one(OpenAI("m"))
    assert reply.outcome is outcome and error in reply.error
    assert (reply.text != "") == (outcome is Outcome.TRUNCATED)


@pytest.mark.parametrize(
    ("code", "fault"), [(429, Fault.BUSY), (503, Fault.BUSY), (500, Fault.FAILED)]
)
def test_a_busy_service_says_how_long_to_wait(openai, code, fault):
    openai.then(openai.error(code, "slow down", retry_after="7"))
    reply = one(OpenAI("m"))
    assert (reply.fault, reply.retry_after) == (fault, 7.0)


def test_nobody_there_is_away(monkeypatch):
    monkeypatch.setenv(BASE_URL, "http://127.0.0.1:9/v1")
    reply = one(OpenAI("m", timeout=5.0))
    assert (reply.outcome, reply.fault) == (Outcome.INFRA_ERROR, Fault.AWAY)


def test_a_server_that_hangs_is_given_up_in_time(openai):
    openai.then(openai.hangs())
    reply = one(OpenAI("m", timeout=0.2))
    assert reply.outcome is Outcome.INFRA_ERROR and "Timeout" in reply.error


@pytest.mark.parametrize(
    ("code", "fields", "hint"),
    [
        (401, {}, KEY),
        (402, {}, "balance"),
        (403, {}, KEY),
        (404, {}, "has the model m"),
        (400, {}, "settings"),
        (429, {"code": "insufficient_quota"}, "balance"),
    ],
)
def test_what_can_never_work_ends_the_run_with_one_line_without_the_key(openai, code, fields, hint):
    openai.then(openai.error(code, f"no:\x1b[2J\n{openai.key}", **fields))
    with pytest.raises(McrError, match=hint) as refused:
        one(OpenAI("m"))
    line = str(refused.value)
    assert openai.key not in line and "[key]" in line and line.isprintable()


def test_a_server_of_ones_own_needs_no_key_and_openai_does(openai, monkeypatch):
    monkeypatch.delenv(KEY)
    openai.then(openai.says("hello"))
    assert one(OpenAI("m")).text == "hello"
    monkeypatch.delenv(BASE_URL)
    with pytest.raises(UsageError, match=KEY):
        OpenAI("m")


def test_an_endpoint_of_its_own_has_its_url_key_and_identity(openai, monkeypatch):
    monkeypatch.delenv(BASE_URL)
    monkeypatch.setenv("OTHER_KEY", "other-key-77")
    openai.then(openai.says("hello"))
    there = OpenAI("m", endpoint=Endpoint("ours", openai.url, "OTHER_KEY"))
    assert one(there).text == "hello"
    assert openai.calls[-1].headers["authorization"] == "Bearer other-key-77"
    assert there.identity == "ours/m"


@pytest.mark.promise("the tier that a reply names decides its price")
@pytest.mark.parametrize(
    ("asked", "named", "tier"),
    [
        ("flex", "flex", "flex"),
        ("flex", "default", ""),  # the service had no room in the tier
        ("flex", None, None),
        ("auto", "priority", "priority"),
        ("", "default", ""),
        ("", None, None),
        ("", "x\n\ud800" * 99, "x ?" * 13 + "…"),
    ],
)
def test_a_service_tier_is_sent_and_that_of_the_reply_is_kept(openai, asked, named, tier):
    openai.then(openai.replies({**json.loads(openai.says("x").body), "service_tier": named}))
    reply = one(OpenAI("m", endpoint=Endpoint("ours", openai.url, KEY, asked)))
    assert openai.calls[-1].body.get("service_tier", "") == asked
    assert (reply.outcome, reply.tier) == (Outcome.OK, tier)


def test_every_service_tier_of_the_client_can_be_named(openai):
    from openai.types.chat import ChatCompletion

    (literal, _) = typing.get_args(ChatCompletion.model_fields["service_tier"].annotation)
    assert sorted(model_specs.TIERS) == sorted(typing.get_args(literal))
    config = configs.default()
    config.endpoints = (
        "a=http://h/v1 service_tier=flex",
        "b=https://h/v1 B_KEY service_tier=auto",
        "c=http://h/v1 C_KEY",
    )
    assert list(model_specs.endpoints(config).values()) == [
        Endpoint("a", "http://h/v1", "", "flex"),
        Endpoint("b", "https://h/v1", "B_KEY", "auto"),
        Endpoint("c", "http://h/v1", "C_KEY", ""),
    ]
    config.endpoints = ("a=http://h/v1 service_tier=cheap",)
    with pytest.raises(UsageError, match="service_tier=TIER"):
        model_specs.endpoints(config)


@pytest.mark.promise("Temperature and top-p are sent, except to models that refuse them")
@pytest.mark.parametrize("model", ["o3", "o4-mini", "gpt-5.1", "openai/o1"])
def test_reasoning_models_are_asked_without_sampling_settings(openai, model):
    openai.then(openai.says("hello"))
    one(OpenAI(model, thinking="low"), ask(temperature=0.7, top_p=0.9))
    body = openai.calls[-1].body
    assert not {"temperature", "top_p", "logprobs"} & body.keys()
    assert body["reasoning_effort"] == "low"


def test_settings_of_sampling_and_a_seed_per_sample_are_sent(openai):
    every(OpenAI("m"), ask(n=2, temperature=0.7, top_p=0.9, top_k=5, seed=3, max_tokens=50))
    first, second = (call.body for call in openai.calls)
    assert (first["seed"], second["seed"]) == (3, 4)
    assert (first["temperature"], first["top_p"], first["top_k"]) == (0.7, 0.9, 5)
    assert first["max_tokens"] == 50


@pytest.mark.parametrize("refused", ["logprobs", "seed", "max_tokens"])
def test_a_parameter_with_a_fallback_is_refused_once(openai, refused):
    openai.refuses = {refused}
    if refused == "max_tokens":  # as OpenAI words it

        def error(status, message, **fields):
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return type(openai).error(openai, status, words, **fields)

        openai.error = error
    replies = every(OpenAI("m"), ask(n=3))
    assert [reply.outcome for reply in replies] == [Outcome.OK] * 3
    assert sum(refused in call.body for call in openai.calls) == 1
    if refused == "max_tokens":
        assert openai.calls[-1].body["max_completion_tokens"] == 1024


@pytest.mark.parametrize("refused", ["temperature", "top_p", "top_k"])
def test_a_parameter_that_decides_answers_is_never_dropped(openai, refused):
    openai.refuses = {refused}
    with pytest.raises(McrError, match=f"{refused}.*settings of sampling"):
        one(OpenAI("m"), ask(temperature=0.7, top_k=4))


def test_structured_output_falls_back_from_schema_to_json_to_words(openai):
    judge, request = OpenAI("m"), ask(schema=SCHEMA, n=3)
    openai.then(
        openai.error(400, "response_format json_schema is not supported"),
        openai.error(400, "response_format.type is invalid"),
        *[openai.says('{"same": true}')] * 3,
    )
    assert [reply.outcome for reply in every(judge, request)] == [Outcome.OK] * 3
    formats = [call.body.get("response_format", {}).get("type") for call in openai.calls]
    assert formats == ["json_schema", "json_object", None, None, None]
    assert '"same"' in openai.calls[-1].body["messages"][0]["content"]


def test_a_schema_is_strict_with_an_object_at_the_root(openai):
    one(OpenAI("m"), ask(schema=reasons.SCHEMA))
    sent = openai.calls[-1].body["response_format"]["json_schema"]
    assert sent["strict"] is True
    root = sent["schema"]
    assert (root["type"], root["required"], root["additionalProperties"]) == (
        "object",
        ["reply"],
        False,
    )
    assert root["properties"]["reply"]["items"]["additionalProperties"] is False


@pytest.mark.parametrize(("date", "status"), [("2027-01-14", "shuts down 2027-01-14"), (None, "")])
def test_the_retirement_of_a_model_is_read_once_and_kept_with_each_answer(openai, date, status):
    openai.shutdown_date = date
    replies = every(OpenAI("m"), ask(n=3))
    assert [reply.model_status for reply in replies] == [status] * 3


def test_an_answer_keeps_the_stop_text_that_it_comes_to(openai):
    openai.then(openai.says("<answer>rime</answer> and so on"))
    assert one(OpenAI("m"), ask(stop=("</answer>",))).text == "<answer>rime</answer>"


def test_a_stop_text_among_the_thoughts_ends_no_answer(openai):
    openai.then(openai.says("<answer>rime</answer> so", thoughts="Close with </answer>. Hm."))
    text = one(OpenAI("m"), ask(stop=("</answer>",))).text
    assert text == "<think>\nClose with </answer>. Hm.\n</think>\n<answer>rime</answer>"


def test_a_server_that_refuses_both_names_of_the_token_limit_ends_the_run(openai):
    no = openai.error(400, "max_completion_tokens is too large; use it in place of max_tokens")
    openai.then(*[no] * 9)
    with pytest.raises(McrError, match=r"400 - .* is too large"):
        one(OpenAI("m"))
    assert len(openai.calls) == 2


def test_counts_that_are_none_and_hostile_fields_are_stored_as_far_as_they_can_be(openai, tmp_path):
    said = json.loads(openai.says("x\x00\ud800", logprobs=[10**400]).body)
    usage = {"prompt_tokens": 10**30, "completion_tokens": -1, "prompt_tokens_details": [7]}
    openai.then(openai.replies({**said, "usage": usage, "model": "m\x00\ud800" * 999}))
    row = RowKey(stage="sample", case="c", model="m", sample=0)
    jobs = [driver.Job(row=row, request=ask())]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert driver.run(Scope("sample", "m"), jobs, OpenAI("m"), ledger).settled == 1
        (kept,) = ledger.answers(Scope("sample", "m")).values()
    assert (kept.outcome, kept.text, kept.usage) == (Outcome.OK, "x\x00?", Usage())
    assert kept.mean_logprob is None and len(kept.model_version) == 200


def test_neither_a_password_in_the_address_nor_a_missing_key_is_printed(openai):
    host = openai.url.removeprefix("http://")
    endpoint = Endpoint("ours", f"http://me:secret@{host}?token=secret", "")
    openai.then(openai.error(404, "gone"), openai.error(401, "no key at all"))
    for words in (f"check that http://{host} has the model m", "no key at all; check the key"):
        with pytest.raises(McrError, match=re.escape(words)) as refused:
            one(OpenAI("m", endpoint=endpoint))
        assert "secret" not in str(refused.value)


def test_log_probabilities_that_are_no_numbers_are_left_out(openai):
    openai.then(openai.says("x", logprobs=[None, -1.0]), openai.says("x", logprobs=[]))
    assert [r.mean_logprob for r in every(OpenAI("m"), ask(n=2))] == [None, None]


def test_a_fifth_of_faults_loses_nothing_and_asks_no_row_twice(openai, tmp_path):
    for _ in range(30):
        openai.then(*[openai.says("<answer>rime</answer>")] * 4, openai.error(503, "busy"))
    scope = Scope("sample", "m")
    rows = [RowKey(stage="sample", case=f"{i:02}", model="m", sample=0) for i in range(20)]
    jobs = [
        driver.Job(row=row, request=Request(key=row.case, messages=ask().messages, n=5))
        for row in rows
    ]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        summary = driver.run(scope, jobs, OpenAI("m", backoff=0.01), ledger)
        assert (summary.total, summary.settled, ledger.count()) == (100, 100, 100)
        again = driver.run(scope, jobs, OpenAI("m"), ledger)
        assert again.asked == 0
    assert len(openai.calls) == 124  # each 503 is asked again, and nothing else


@pytest.mark.parametrize("settings", [{"thinking": "very"}, {"concurrency": 0}, {"timeout": 0}])
def test_a_wrong_setting_is_one_line(openai, settings):
    with pytest.raises(UsageError):
        OpenAI("m", **settings)
