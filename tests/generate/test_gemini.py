"""The real google-genai client with a Gemini server on loopback: every ending has its outcome."""

import asyncio
import datetime
import json
import subprocess
import sys
import zoneinfo

import pytest

from mcr_jax import completion
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.generate import driver, quota
from mcr_jax.generate.api import Outcome, Request, Usage
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.gemini_access import KEYS
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.pace import Fault

SCHEMA = {"type": "object", "properties": {"same": {"type": "boolean"}}, "required": ["same"]}
SCOPE = Scope("sample", "gemini")


def ask(messages=({"role": "user", "content": "Which hum?"},), **options):
    return Request(key="k", messages=tuple(messages), **options)


def every(generator, request):
    """Returns the replies to all wanted answers of a request, by one call after another."""

    async def call():
        try:
            return [await generator.call(request, index) for index in request.wanted]
        finally:
            await generator.close()

    return asyncio.run(call())


def one(generator, request=None):
    (reply,) = every(generator, request or ask())
    return reply


def run(tmp_path, generator):
    """Runs one row through the driver; returns the summary, the attempt and the number of rows."""
    row = RowKey(stage="sample", case="c", model="gemini", sample=0)
    jobs = [driver.Job(row=row, request=ask())]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        summary = driver.run(SCOPE, jobs, generator, ledger)
        return summary, ledger.answers(SCOPE)[row], ledger.count()


def test_answer_is_text_without_thoughts_and_counts_every_token(gemini):
    gemini.then(gemini.says("It is rime.", thoughts="Let me think."))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.text, reply.model_version) == (
        Outcome.OK,
        "It is rime.",
        "loopback-1",
    )
    assert reply.usage == Usage(prompt=11, output=12, cached=3)


def test_request_on_the_wire(gemini):
    gemini.then(gemini.says('{"same": true}'))
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    )
    request = ask(messages, temperature=0.0, seed=7, max_tokens=99, schema=SCHEMA)
    one(Gemini("m", thinking="0", timeout=7), request)
    (call,) = gemini.calls
    assert call.path == "/v1beta/models/m:generateContent"
    assert call.headers["x-goog-api-key"] == gemini.key
    turns = [(c["role"], c["parts"]) for c in call.body["contents"]]
    assert turns == [
        ("user", [{"text": "One?"}]),
        ("model", [{"text": "Two."}]),
        ("user", [{"text": "Three?"}]),
    ]
    assert call.body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    config = call.body["generationConfig"]
    assert (config["temperature"], config["seed"], config["maxOutputTokens"]) == (0, 7, 99)
    assert config["responseMimeType"] == "application/json"
    assert config["responseSchema"]["properties"]["same"]["type"] == "BOOLEAN"
    assert config["thinkingConfig"] == {"thinking_budget": 0}


def test_filters_and_stops_are_sent_only_where_they_are_set(gemini):
    one(Gemini("m"), ask(top_k=5, stop=("</answer>",)))
    one(Gemini("m"))
    config, plain = (call.body["generationConfig"] for call in gemini.calls)
    assert (config["topK"], config["stopSequences"]) == (5, ["</answer>"])
    assert not {"topK", "stopSequences"} & plain.keys()


def test_without_schema_and_thinking_the_defaults_of_the_service_hold(gemini):
    one(Gemini("m"))
    config = gemini.calls[0].body["generationConfig"]
    assert not {"responseSchema", "responseMimeType", "thinkingConfig"} & config.keys()


def test_every_wanted_index_is_a_call_with_its_own_seed(gemini):
    request = ask(n=4, indices=(1, 3), temperature=0.7, seed=10)
    assert [r.index for r in every(Gemini("m"), request)] == [1, 3]
    assert [c.body["generationConfig"]["seed"] for c in gemini.calls] == [11, 13]


def test_token_limit_is_truncated_and_keeps_the_text(gemini):
    gemini.then(gemini.says("It is", finish="MAX_TOKENS"), gemini.says("", finish="MAX_TOKENS"))
    generator = Gemini("m")
    replies = [one(generator), one(generator)]
    assert [(r.outcome, r.text) for r in replies] == [
        (Outcome.TRUNCATED, "It is"),
        (Outcome.TRUNCATED, ""),
    ]


def test_continuation_is_not_followed_by_a_second_billed_call(gemini):
    gemini.then(gemini.says("It is", finish="CONTINUATION"))
    assert one(Gemini("m")).outcome is Outcome.TRUNCATED
    assert len(gemini.calls) == 1


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII"])
def test_refused_answer_is_blocked_and_its_text_is_not_taken(gemini, reason):
    gemini.then(gemini.says("half an answer", finish=reason))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.text, reply.usage.prompt) == (Outcome.BLOCKED, "", 11)
    assert reason in reply.error


def test_refused_prompt_is_blocked(gemini):
    gemini.then(gemini.replies({"promptFeedback": {"blockReason": "SAFETY"}}))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.error) == (Outcome.BLOCKED, "prompt blocked: SAFETY")


@pytest.mark.parametrize("finish", ["STOP", "OTHER", "MALFORMED_RESPONSE", None])
def test_reply_without_text_is_malformed(gemini, finish):
    gemini.then(gemini.says("", finish=finish))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.text) == (Outcome.MALFORMED, "")


@pytest.mark.filterwarnings("ignore:FROM_THE_FUTURE")
def test_finish_reason_unknown_to_the_client_is_malformed(gemini):
    gemini.then(gemini.says("text", finish="FROM_THE_FUTURE"))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.error) == (Outcome.MALFORMED, "finish reason FROM_THE_FUTURE")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>gateway</html>", b"\xff\xfe", b"[]", b"null", b"7", b'"text"', b"{}"),
        *(b'{"candidates": [7]}', b'{"usageMetadata": []}', b'{"candidates": []}'),
        b'{"candidates": [{"content": {"parts": [{"text": 7}]}, "finishReason": "STOP"}]}',
        b"[" * 100_000,
    ],
)
def test_200_that_is_no_reply_is_an_infrastructure_error(gemini, body):
    gemini.then(gemini.raw(body))
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.text) == (Outcome.INFRA_ERROR, "")
    assert reply.error and "\n" not in reply.error


def test_counts_that_are_none_are_zero_and_the_answer_is_kept(gemini, tmp_path):
    usage = {"promptTokenCount": 10**30, "candidatesTokenCount": -7, "thoughtsTokenCount": 5}
    gemini.then(gemini.says("x", usageMetadata=usage, modelVersion="m\n" * 999))
    _, attempt, _ = run(tmp_path, Gemini("m"))
    assert (attempt.outcome, attempt.usage) == (Outcome.OK, Usage())
    assert len(attempt.model_version) == 200


def test_finish_reason_that_is_missing_is_malformed(gemini):
    gemini.then(gemini.raw(b'{"candidates": "x"}'))
    assert one(Gemini("m")).outcome is Outcome.MALFORMED


def test_wait_named_by_the_service_is_passed_on(gemini):
    gemini.then(
        gemini.error(429, "slow down", retry_delay="7.5s", retry_after="3"),
        gemini.error(503, "overloaded", retry_after="12"),
        gemini.error(503, "overloaded", retry_after="Thu, 01 Jan 1970 00:00:00 GMT"),
        gemini.error(503, "overloaded", retry_after="soon", retry_delay="later"),
        gemini.raw(b'{"error": [1]}', 500),
        gemini.raw(b"busy", 502),
    )
    replies = every(Gemini("m"), ask(n=6))
    assert {r.outcome for r in replies} == {Outcome.INFRA_ERROR}
    assert [r.retry_after for r in replies] == [7.5, 12.0, 0.0, None, None, None]


FAULTS = {
    "429": (lambda s: s.error(429, "slow down", retry_delay="0s"), Fault.BUSY),
    "503": (lambda s: s.error(503, "overloaded", retry_delay="0s"), Fault.BUSY),
    "500": (lambda s: s.error(500, "try again"), Fault.FAILED),
    "201": (lambda s: s.raw(b"{}", 201), Fault.FAILED),
    "drops": (lambda s: s.drops(), Fault.FAILED),
    "cuts": (lambda s: s.cuts(), Fault.FAILED),
    "not JSON": (lambda s: s.raw(b"<html>"), Fault.FAILED),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_transient_failure_is_retried_and_costs_the_row_nothing(gemini, tmp_path, name):
    answer, fault = FAULTS[name]
    gemini.then(answer(gemini), answer(gemini), gemini.says("It is rime."))
    assert one(Gemini("m")).fault is fault
    summary, attempt, rows = run(tmp_path, Gemini("m"))
    assert (summary.settled, attempt.outcome, attempt.text) == (1, Outcome.OK, "It is rime.")
    assert (attempt.attempt, rows, len(gemini.calls)) == (1, 1, 3)


def test_a_refused_connection_is_a_service_that_is_away(gemini, monkeypatch):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1")
    reply = one(Gemini("m"))
    assert (reply.outcome, reply.fault) == (Outcome.INFRA_ERROR, Fault.AWAY)


@pytest.mark.promise(
    "A daily quota that is used up ends the run with status 75 and the time of its reset."
)
@pytest.mark.parametrize(
    ("quota_id", "ends"),
    [
        ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", True),
        ("GenerateRequestsPerMinutePerProjectPerModel", False),
    ],
)
def test_a_daily_quota_stops_the_run_and_one_per_minute_is_waited_for(
    gemini, tmp_path, quota_id, ends
):
    gemini.then(gemini.error(429, "quota", quota=quota_id, retry_delay="0s"))
    if ends:
        with pytest.raises(Stopped, match=f"{quota_id}.*in Los Angeles") as raised:
            run(tmp_path, Gemini("m"))
        assert "\n" not in str(raised.value)
        assert len(gemini.calls) == 1
    else:
        assert run(tmp_path, Gemini("m"))[0].settled == 1


@pytest.mark.parametrize(
    ("now", "here", "there"),
    [
        ("2026-11-26 10:00", "2026-11-27 09:00 CET", "2026-11-27 00:00"),
        ("2026-11-26 08:59", "2026-11-26 09:00 CET", "2026-11-26 00:00"),
        ("2026-07-01 12:00", "2026-07-02 09:00 CEST", "2026-07-02 00:00"),
        ("2026-03-07 20:00", "2026-03-08 09:00 CET", "2026-03-08 00:00"),  # the night clocks change
        ("2026-03-08 20:00", "2026-03-09 08:00 CET", "2026-03-09 00:00"),
    ],
)
def test_a_daily_quota_is_reset_at_midnight_in_los_angeles(now, here, there):
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    line = quota.line("Q", datetime.datetime.fromisoformat(now).replace(tzinfo=zone))
    assert f"after {here} ({there} in Los Angeles)" in line


def test_server_that_hangs_is_a_timeout(gemini):
    gemini.then(gemini.hangs())
    reply = one(Gemini("m", timeout=0.2))
    assert (reply.outcome, reply.fault) == (Outcome.INFRA_ERROR, Fault.FAILED)
    assert "imeout" in reply.error


@pytest.mark.parametrize(
    ("code", "says"),
    [(400, "GEMINI_API_KEY"), (401, "key"), (403, "key"), (404, "model m"), (405, "BASE_URL")],
)
def test_a_permanent_error_stops_the_run_with_one_line(gemini, tmp_path, code, says):
    gemini.then(*(gemini.error(code, f"no:\x1b\n  {gemini.key}") for _ in range(2)))
    with pytest.raises(McrError, match=f"HTTP {code}") as raised:
        run(tmp_path, Gemini("m"))
    line = str(raised.value)
    assert says in line and line.isprintable() and gemini.key not in line
    assert len(gemini.calls) == 1


@pytest.mark.parametrize("code", [400, 413])
def test_a_prompt_too_long_for_the_model_fails_its_row_only(gemini, code):
    message = "The input token count (2000000) exceeds the maximum number of tokens allowed."
    gemini.then(gemini.error(code, message))
    assert one(Gemini("m")).outcome is Outcome.PROMPT_TOO_LONG


def test_path_prefix_of_the_base_url_is_kept(gemini, monkeypatch):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{gemini.url}/gateway/eu")
    one(Gemini("m"))
    assert gemini.calls[0].path == "/gateway/eu/v1beta/models/m:generateContent"


def test_settings_of_the_machine_do_not_redirect_the_calls(gemini, monkeypatch):
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key")
    one(Gemini("m"))
    (call,) = gemini.calls
    assert call.path.startswith("/v1beta/")
    assert call.headers["x-goog-api-key"] == gemini.key


def test_vertex_ai_takes_a_key_alone(gemini, monkeypatch):
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    reply = one(Gemini("m"))
    (call,) = gemini.calls
    assert reply.outcome is Outcome.OK
    assert call.path == "/v1beta1/publishers/google/models/m:generateContent"
    assert call.headers["x-goog-api-key"] == gemini.key


def test_vertex_ai_takes_a_project_with_the_credentials_of_the_machine(gemini, monkeypatch):
    from google import auth
    from google.oauth2.credentials import Credentials

    monkeypatch.setattr(auth, "default", lambda **_: (Credentials("loopback-token"), "other"))
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "1")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "fiction-7")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "europe-west4")
    monkeypatch.delenv("GEMINI_API_KEY")
    service = Gemini("m")
    assert one(service).outcome is Outcome.OK
    (call,) = gemini.calls
    assert call.path.startswith("/v1beta1/projects/fiction-7/locations/europe-west4/publishers/")
    assert call.headers["authorization"] == "Bearer loopback-token"
    monkeypatch.delenv("GOOGLE_GENAI_USE_VERTEXAI")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    assert service.identity == Gemini("m").identity  # a way to the model, not another model


def test_vertex_ai_without_credentials_is_one_line_that_says_how_to_get_some(gemini, monkeypatch):
    from google import auth
    from google.auth.exceptions import DefaultCredentialsError

    def missing(**_):
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.setattr(auth, "default", missing)
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(UsageError, match="GOOGLE_CLOUD_PROJECT"):
        Gemini("m")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "fiction-7")
    with pytest.raises(McrError, match="gcloud auth application-default login"):
        one(Gemini("m"))


def test_summaries_of_thoughts_are_the_trace_where_they_are_asked_for(gemini):
    said = "<answer>Sable gout</answer>"
    for _ in range(2):
        gemini.then(gemini.says(said, thoughts="It hums."))
    kept, plain = Gemini("gemini-2.5-pro", thoughts=True), Gemini("gemini-2.5-pro")
    read = completion.parse(one(kept).text)
    assert (read.trace, read.answer) == ("It hums.", "Sable gout")
    assert one(plain).text == said
    asked = [call.body["generationConfig"].get("thinkingConfig") for call in gemini.calls]
    assert asked == [{"include_thoughts": True}, None]
    assert kept.identity == f"{plain.identity}/thoughts=summaries"


def test_second_name_of_the_key_works_alone(gemini, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("GOOGLE_API_KEY", " other-key\n")
    one(Gemini("m"))
    assert gemini.calls[0].headers["x-goog-api-key"] == "other-key"


@pytest.mark.parametrize("key", [None, "", "  ", "sk secret", "clé-secret", "a\nsecret"])
def test_an_invalid_key_is_a_usage_error_that_does_not_show_it(monkeypatch, key):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("GEMINI_API_KEY", key)
    with pytest.raises(UsageError, match="GEMINI_API_KEY") as raised:
        Gemini("m")
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_the_line_about_a_missing_key_names_every_field_that_can_need_it(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="set GEMINI_API_KEY or GOOGLE_API_KEY") as raised:
        Gemini("m")
    assert "config.judge.models, config.stitch.model or config.stitch.judge" in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:80", "ftp://here", "http://"])
def test_base_url_without_scheme_or_host_is_a_usage_error(gemini, monkeypatch, url):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    with pytest.raises(UsageError, match="GOOGLE_GEMINI_BASE_URL"):
        Gemini("m")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"concurrency": 0}, {"model": " "}])
def test_bad_argument_is_a_usage_error(gemini, options):
    with pytest.raises(UsageError, match="Gemini needs"):
        Gemini(**{"model": "m", **options})


def test_the_key_is_in_the_header_only(gemini, tmp_path):
    echo = f"key {gemini.key} is over its quota"
    gemini.then(gemini.error(429, echo, retry_delay="0s"), *(gemini.raw(echo.encode(), 500),) * 10)
    generator = Gemini("m", backoff=0.0)
    _, attempt, _ = run(tmp_path, generator)
    assert attempt.outcome is Outcome.INFRA_ERROR and "[key]" in attempt.error
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert gemini.key.encode() not in stored
    assert gemini.key not in generator.identity + generator.pacer.error
    assert all(gemini.key not in json.dumps([c.path, c.body]) for c in gemini.calls)


def test_identity_names_the_model_and_what_changes_its_answers(gemini):
    assert Gemini("m").identity == Gemini("m", timeout=9, concurrency=2).identity
    assert Gemini("m").identity != Gemini("other").identity
    assert Gemini("m").identity != Gemini("m", thinking="0").identity
    assert Gemini("gemini-2.5-flash").identity == "gemini/gemini-2.5-flash"
    today = "gemini/gemini-3.5-flash-lite/sampling=service default/thinking="
    assert Gemini("gemini-3.5-flash-lite").identity == f"{today}service default"
    assert Gemini("gemini-3.5-flash-lite", thinking="LOW").identity == f"{today}low"


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        *(("gemini-2.5-flash", True), ("gemini-2.0-flash", True), ("gemma-3-27b-it", True)),
        *(("gemini-3.5-flash-lite", False), ("gemini-3-pro-preview", False)),
        *(("gemini-4-pro", False), ("gemini-flash-latest", False), ("models/gemini-10-x", False)),
    ],
)
def test_sampling_is_left_to_the_service_from_gemini_3_on(gemini, model, sent):
    one(Gemini(model), ask(temperature=0.7, top_p=0.9, top_k=5))
    config = gemini.calls[0].body["generationConfig"]
    found = {"temperature", "topP", "topK"} & config.keys()
    assert found == ({"temperature", "topP", "topK"} if sent else set())
    assert "candidateCount" not in config


@pytest.mark.parametrize(
    ("model", "thinking", "sent"),
    [
        ("gemini-3.5-flash-lite", "minimal", {"thinking_level": "MINIMAL"}),
        ("gemini-3.8-flash", "HIGH", {"thinking_level": "HIGH"}),
        ("gemini-flash-latest", "low", {"thinking_level": "LOW"}),
        ("gemini-2.5-flash", "512", {"thinking_budget": 512}),
        ("gemini-2.5-pro", "-1", {"thinking_budget": -1}),
        ("gemini-2.5-flash", "0", {"thinking_budget": 0}),
    ],
)
def test_thinking_is_a_level_from_gemini_3_on_and_a_budget_before(gemini, model, thinking, sent):
    one(Gemini(model, thinking=thinking))
    assert gemini.calls[0].body["generationConfig"]["thinkingConfig"] == sent


@pytest.mark.parametrize(
    ("model", "thinking", "takes"),
    [
        *(("gemini-3.5-flash-lite", "0", "a level"), ("gemini-3.5-flash-lite", "512", "a level")),
        *(("gemini-3.5-flash-lite", "much", "a level"), ("gemini-2.5-flash", "low", "a number")),
        *(("gemini-2.5-flash", "-2", "a number"), ("gemini-2.0-flash", "512", "none")),
        *(("m", "often", "a level"), ("gemini-2.5-flash", "1e3", "a number")),
    ],
)
def test_thinking_that_the_model_does_not_support_is_a_usage_error(gemini, model, thinking, takes):
    with pytest.raises(UsageError, match=f"{model} takes {takes}"):
        Gemini(model, thinking=thinking)
    assert not gemini.calls


def test_a_conversation_that_ends_with_the_model_is_never_sent(gemini):
    ending = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    with pytest.raises(ValueError, match="user's turn"):
        one(Gemini("m"), ask(ending))
    assert not gemini.calls


def test_the_retirement_notice_of_the_service_is_passed_on(gemini):
    status = {"modelStage": "DEPRECATED", "retirementTime": "2026-12-01T00:00:00Z"}
    gemini.then(gemini.says("hm", modelStatus={**status, "message": "Use\n another."}))
    assert one(Gemini("m")).model_status == "DEPRECATED; retires 2026-12-01; Use another."


def test_as_many_calls_as_set_are_in_flight_and_keep_their_connections(gemini, tmp_path):
    jobs = [
        driver.Job(
            row=RowKey(stage="sample", case=f"c{i}", model="gemini", sample=0),
            request=Request(key=f"k{i}", messages=({"role": "user", "content": "?"},)),
        )
        for i in range(120)
    ]
    gemini.gather(30)  # the server replies to none before 30 calls are in flight
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        summary = driver.run(SCOPE, jobs, Gemini("m", concurrency=30), ledger)
        assert (summary.settled, ledger.count()) == (120, 120)
    assert gemini.most_in_flight == 30
    assert gemini.connections == 30


def test_module_imports_without_the_client():
    code = "import sys, mcr_jax.generate.gemini; sys.exit('google.genai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
