"""Batches by the real clients with servers on loopback: nothing is lost or submitted twice."""

import copy
import dataclasses
import json
import pathlib
import signal
import sqlite3
import subprocess
import sys

import pytest
from quick import quick

from mcr_jax import config as configs
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.generate import batch_jobs, driver, gemini_batch, spending
from mcr_jax.generate.api import Outcome, Request
from mcr_jax.generate.batch_wire import Batched, Pause
from mcr_jax.generate.budget import Budget
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.open_batches import open_batches
from mcr_jax.generate.openai import OpenAI
from mcr_jax.generate.questions import Reader
from mcr_jax.model_specs import Endpoint

NOTE = {
    "type": "object",
    "properties": {"quote": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["quote"],
}
SCHEMA = {
    "type": "object",
    "properties": {"same": {"type": "boolean"}, "notes": {"type": "array", "items": NOTE}},
    "required": ["same"],
}
SCOPE = Scope("diagnosis", "m", "j")
MANY = 12


def job(i, model="m", prompt="", n=1):
    text = f"{prompt}<reference>\n{i}\n</reference>\n<predicted>\n{i % 5}\n</predicted>"
    return driver.Job(
        row=RowKey(stage="diagnosis", case=f"c{i:02}", model=model, sample=0, judge="j"),
        request=Request(
            key=f"c{i:02}/{model}",
            messages=({"role": "user", "content": text},),
            schema=SCHEMA,
            n=n,
        ),
    )


def parse(request, text):
    verdict = json.loads(text)
    if verdict.keys() != {"same"}:
        raise ValueError("another form")
    return verdict


READER = Reader(parse=parse, name="same/1")
JOBS = [job(i) for i in range(MANY)]


class Clock:
    """Time that only `sleep` moves; a hook runs in each sleep."""

    def __init__(self, hook=lambda waits: None):
        self.time, self.waits, self.hook = 1_700_000_000.0, [], hook

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.time += seconds
        self.hook(len(self.waits))

    @property
    def pause(self):
        return Pause(self.sleep, lambda: self.time)


ALL = pytest.mark.parametrize("server", ["gemini", "gemini file", "openai"], indirect=True)


@pytest.fixture(params=["gemini", "openai"])
def server(request, monkeypatch):
    """A server; `server.make()` returns its service."""
    kind, _, file = request.param.partition(" ")
    found = request.getfixturevalue(kind)
    if file:
        monkeypatch.setattr(gemini_batch, "INLINE_BYTES", 0)
    found.make = (lambda: OpenAI("m")) if kind == "openai" else lambda: Gemini("gemini-2.5-flash")
    found.inline, found.google = request.param == "gemini", kind == "gemini"
    return found


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def run(server, ledger, jobs=JOBS, scope=SCOPE, clock=None, reader=READER, **options):
    generator = Batched(server.make(), 600.0, (clock or Clock()).pause)
    return driver.run(scope, jobs, generator, ledger, reader=reader, **options)


def verdicts(ledger, scope=SCOPE):
    return {row.case: a and a.verdict for row, a in ledger.answers(scope).items()}


RIGHT = {f"c{i:02}": {"same": i < 5} for i in range(MANY)}


def states(ledger):
    with sqlite3.connect(ledger.path) as db:
        return [state for (state,) in db.execute("SELECT state FROM batches ORDER BY rowid")]


@ALL
def test_a_batch_gives_the_rows_that_direct_calls_give(server, ledger, tmp_path):
    with Ledger(tmp_path / "direct.sqlite") as direct:
        driver.run(SCOPE, JOBS, server.make(), direct, reader=READER)
        expected = direct.answers(SCOPE)
    calls, schema = [call.body for call in server.calls], copy.deepcopy(SCHEMA)
    clock, progress = Clock(), []
    server.polls_before_end = 4
    summary = run(
        server, ledger, clock=clock, progress=lambda n, note="": progress.append((n, note))
    )
    assert summary == driver.Summary(total=MANY, asked=MANY, settled=MANY)
    found = ledger.answers(SCOPE)
    fields = ("outcome", "text", "verdict", "usage", "model_version", "question", "max_tokens")
    for row, attempt in expected.items():
        assert [getattr(found[row], f) for f in fields] == [getattr(attempt, f) for f in fields]
    assert verdicts(ledger) == RIGHT and states(ledger) == ["done"]
    with sqlite3.connect(ledger.path) as db:
        assert {a.batch for a in found.values()} == {
            db.execute("SELECT id FROM batches").fetchone()[0]
        }
    assert schema == SCHEMA  # the client may change it, and with it the digests
    (job,) = server.jobs
    sent = [json.dumps(body, sort_keys=True) for _, body in job.requests]
    assert sorted(sent) == sorted(json.dumps(call, sort_keys=True) for call in calls)
    assert clock.waits == [10.0, 15.0, 22.5, 33.75]
    assert progress[-1] == (MANY, "") and "next look at" in progress[0][1]
    assert open_batches(ledger) == []
    run(server, ledger)
    assert len(server.jobs) == 1 and len(server.calls) == MANY


@ALL
def test_small_batches_go_inline_and_larger_ones_as_a_file(server, ledger):
    run(server, ledger)
    assert (server.jobs[0].inline, server.uploads) == ((True, 0) if server.inline else (False, 1))


def test_a_file_that_is_uploaded_in_chunks_is_whole(gemini, ledger):
    gemini.make = lambda: Gemini("gemini-2.5-flash")
    jobs = [job(i, prompt="word " * 200_000) for i in range(MANY)]  # 12 MB, in chunks of 8
    assert run(gemini, ledger, jobs).settled == MANY
    assert [len(job.requests) for job in gemini.jobs] == [MANY] and verdicts(ledger) == RIGHT


def test_completions_are_drawn_by_batches_with_a_seed_each(server, ledger):
    scope = Scope("sample", "m")
    jobs = [
        driver.Job(
            row=RowKey(stage="sample", case=f"c{i}", model="m", sample=0),
            request=Request(key=f"c{i}", messages=({"role": "user", "content": "?"},), n=4, seed=7),
        )
        for i in range(3)
    ]
    assert run(server, ledger, jobs, scope, reader=None).settled == 12
    bodies = [body for _, body in server.jobs[0].requests]
    seeds = [body.get("seed", body.get("generationConfig", {}).get("seed")) for body in bodies]
    assert sorted(seeds) == sorted([7, 8, 9, 10] * 3)
    assert all(a.text.startswith("<think>") for a in ledger.answers(scope).values())


@ALL
def test_results_out_of_order_without_key_twice_or_of_another_batch_never_mix_rows(server, ledger):
    def spoil(results):
        results = results[::-1]
        (_, one), (second, two), (_, three) = results[:3]
        other = [("", one), (second, results[-1][1]), ("0" * 32 + "-3", three)]
        return [*other, (second, two), *results[3:], *results[3:5]]  # the same twice is one

    server.spoil = spoil
    assert run(server, ledger).settled == MANY
    assert verdicts(ledger) == RIGHT
    assert len(server.jobs) == 1 and len(server.calls) == 3  # three rows: too few for a batch
    assert ledger.count() == MANY


def test_a_failed_request_and_a_malformed_reply_are_asked_again(server, ledger):
    server.then(
        server.error(500, "internal fault"),
        server.says("no JSON"),
        server.says('{"same": tr', finish="MAX_TOKENS" if server.google else "length"),
    )
    run(server, ledger)
    assert verdicts(ledger) == RIGHT and len(server.jobs) == 1 and len(server.calls) == 3
    assert ledger.count() == MANY + 2  # the failed one is not recorded
    limits = [
        call.body.get("max_tokens") or call.body["generationConfig"]["maxOutputTokens"]
        for call in server.calls
    ]
    assert sorted(limits) == [1024, 1024, 2048]


def test_more_than_a_handful_goes_into_the_next_batch(server, ledger):
    server.then(*[server.says("no JSON") for _ in range(11)])
    run(server, ledger)
    assert [len(job.requests) for job in server.jobs] == [12, 11] and server.calls == []
    assert verdicts(ledger) == RIGHT


def test_few_rows_are_asked_directly(server, ledger):
    assert run(server, ledger, JOBS[:9]).settled == 9
    assert server.jobs == [] and len(server.calls) == 9 and states(ledger) == []


@ALL
def test_an_expired_batch_keeps_what_came_and_asks_the_rest_again(server, ledger):
    server.job_ends.append("EXPIRED")
    kept = iter((lambda results: results[:1], lambda results: results))
    server.spoil = lambda results: next(kept)(results)
    run(server, ledger)
    assert [len(job.requests) for job in server.jobs] == [12, 11]
    assert states(ledger) == ["expired", "done"] and verdicts(ledger) == RIGHT


def test_batches_that_always_expire_end_after_the_attempts(server, ledger):
    server.job_ends.extend(["EXPIRED"] * 9)
    server.spoil = lambda results: []
    summary = run(server, ledger, attempts=2)
    assert (summary.settled, len(server.jobs)) == (0, 2)
    assert summary.errors == ("the batch expired before this request was answered",)


@pytest.mark.promise(
    "A job that fails or is cancelled at the service ends the command with status 1"
)
@pytest.mark.parametrize("ends", ["FAILED", "CANCELLED"])
def test_a_batch_that_fails_is_one_line_and_the_next_run_submits_anew(server, ledger, ends):
    server.job_ends.append(ends)
    with pytest.raises(McrError, match=f"{ends.lower()} at the service") as raised:
        run(server, ledger)
    assert "\n" not in str(raised.value) and states(ledger) == [ends.lower()]
    run(server, ledger)
    assert verdicts(ledger) == RIGHT and len(server.jobs) == 2


def test_a_large_scope_is_split_by_the_limits_of_the_service(server, ledger):
    generator = Batched(server.make(), 600.0, Clock().pause)
    generator.wire.most_requests = 5
    assert driver.run(SCOPE, JOBS, generator, ledger, reader=READER).settled == MANY
    assert [len(job.requests) for job in server.jobs] == [5, 5, 2]
    assert verdicts(ledger) == RIGHT


def test_all_scopes_are_submitted_before_the_first_is_waited_for_and_share_equal_questions(
    server, ledger
):
    other = Scope("diagnosis", "o", "j")
    generator = Batched(server.make(), 600.0, Clock().pause)
    wanted = {SCOPE: JOBS, other: [job(i, "o") for i in range(MANY + 11)]}
    works = [driver.declare(s, j, generator, ledger, reader=READER) for s, j in wanted.items()]
    for work in works:
        driver.submit(work, generator, ledger)
    assert [len(job.requests) for job in server.jobs] == [12, 11]
    assert [b.rows for b in open_batches(ledger)] == [12, 11]
    for scope, jobs in wanted.items():
        driver.run(scope, jobs, generator, ledger, reader=READER)
    assert len(server.jobs) == 2 and server.calls == []
    assert verdicts(ledger) == RIGHT and len(verdicts(ledger, other)) == 23
    assert None not in verdicts(ledger, other).values()


def stopping(after):
    def hook(waits):
        if waits == after:
            raise KeyboardInterrupt

    return Clock(hook)


def test_ctrl_c_names_the_batch_that_goes_on_and_the_next_run_fetches_it(server, ledger, capsys):
    server.polls_before_end = 5
    with pytest.raises(Stopped) as raised:
        run(server, ledger, clock=stopping(3))
    name = server.jobs[0].name
    assert str(raised.value) == (
        f"interrupted; at the service {name} goes on, and the same command re-attaches"
    )
    (shown,) = open_batches(ledger)
    assert (shown.scope, shown.rows, shown.state, shown.name) == (SCOPE, MANY, "polling", name)
    assert run(server, ledger).settled == MANY
    assert len(server.jobs) == 1 and verdicts(ledger) == RIGHT
    assert f"batch {name}, submitted 2023-" in capsys.readouterr().out


def test_rows_in_an_open_batch_are_not_asked_directly(server, ledger):
    server.polls_before_end = 5
    with pytest.raises(Stopped):
        run(server, ledger, clock=stopping(1))
    jobs = [*JOBS, job(50)]
    summary = driver.run(SCOPE, jobs, server.make(), ledger, reader=READER)
    assert (summary.asked, summary.settled, len(server.calls)) == (13, 1, 1)
    assert (summary.errors, summary.in_batch) == (("in an open batch",), 12)
    assert run(server, ledger, jobs).settled == MANY
    assert len(server.jobs) == 1 and len(server.calls) == 1


def test_a_reply_to_a_prompt_that_changed_meanwhile_is_kept_for_when_it_is_wanted_again(
    server, ledger
):
    server.polls_before_end = 2
    with pytest.raises(Stopped):
        run(server, ledger, clock=stopping(1))
    changed = [job(i, prompt="New. ") for i in range(MANY)]
    assert run(server, ledger, changed).settled == MANY
    assert len(server.jobs) == 2 and open_batches(ledger) == []
    assert run(server, ledger).asked == 0
    assert verdicts(ledger) == RIGHT and len(server.jobs) == 2
    assert ledger.count() == 2 * MANY


def submitting(ledger, server):
    """Leaves the ledger as a kill does between the submission and its reply."""
    with pytest.raises(Stopped):
        run(server, ledger, clock=stopping(1))
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE batches SET state = 'submitting', name = ''")


def test_a_job_that_the_list_shows_late_is_found_by_its_nonce(server, ledger):
    submitting(ledger, server)
    server.listed = False
    clock = Clock(lambda waits: setattr(server, "listed", waits >= 3))
    clock.time += 10.0
    assert run(server, ledger, clock=clock).settled == MANY
    assert len(server.jobs) == 1 and clock.waits[:3] == [10.0] * 3


def test_a_submission_that_never_arrived_is_made_again_after_a_minute(server, ledger):
    submitting(ledger, server)
    server.jobs.clear()
    clock = Clock()
    assert run(server, ledger, clock=clock).settled == MANY
    assert sum(clock.waits[:6]) == batch_jobs.LOOKUP_S
    assert states(ledger) == ["cancelled", "done"] and len(server.jobs) == 1


def test_a_clock_that_was_set_back_does_not_prolong_the_search(server, ledger):
    submitting(ledger, server)
    server.jobs.clear()
    clock = Clock()
    clock.time -= 86_400.0
    assert run(server, ledger, clock=clock).settled == MANY
    assert sum(clock.waits[:6]) == batch_jobs.LOOKUP_S and len(server.jobs) == 1


def test_a_reply_that_the_service_would_continue_is_truncated(gemini, ledger):
    gemini.make = lambda: Gemini("gemini-2.5-flash")
    gemini.then(gemini.says('{"same": ', finish="CONTINUATION"))
    run(gemini, ledger)
    assert verdicts(ledger) == RIGHT and (len(gemini.jobs), len(gemini.calls)) == (1, 1)
    with sqlite3.connect(ledger.path) as db:
        (found,) = db.execute("SELECT text FROM attempts WHERE outcome = 'TRUNCATED'").fetchall()
    assert found == ('{"same": ',)


def test_a_nonce_is_found_behind_the_jobs_of_others(server, ledger):
    submitting(ledger, server)
    for _ in range(5):
        server._new_job("batch_x", "another", [], inline=False)
    assert run(server, ledger).settled == MANY
    assert len(server.jobs) == 6


def test_a_busy_service_is_asked_again_and_a_refusal_is_one_line(server, ledger):
    server.then(server.refuses_job(429, "slow down"), server.refuses_job(503, "away"))
    assert run(server, ledger).settled == MANY
    assert len(server.jobs) == 1
    server.then(server.refuses_job(400, f"no batches with {server.key}"))
    with pytest.raises(McrError, match=r"refused a batch .HTTP 400: .*with \[key\]") as raised:
        run(server, ledger, [job(i) for i in range(40)])
    assert "\n" not in str(raised.value) and states(ledger)[-1] == "failed"
    assert len(server.jobs) == 1


def test_a_service_that_stays_away_ends_the_run_and_the_batch_goes_on(server, ledger):
    def hook(waits):
        server._get_batch = lambda path: server.error(503, "overloaded")

    with pytest.raises(McrError, match=r"no answer about a batch within .*=600 s"):
        run(server, ledger, clock=Clock(hook))
    (shown,) = open_batches(ledger)
    assert shown.state == "polling"


def paying(server, ledger, jobs, clock=None):
    """Runs as a stage does, with the payments of a service in the tier of batches."""
    generator = Batched(server.make(), 600.0, (clock or Clock()).pause)
    work = driver.declare(SCOPE, jobs, generator, ledger, reader=READER)
    payments = Budget(configs.default(), ledger).of("openai:m", "batch")
    return driver.answer(work, generator, ledger, payments=payments)


@pytest.mark.promise("are too few for a job and are asked directly, at the full price")
def test_direct_calls_of_a_run_with_batches_have_the_full_price(server, ledger):
    server.then(server.says("no JSON"))
    paying(server, ledger, JOBS)
    found = [(part.service, part.tier, part.requests) for part in spending.read(ledger)]
    assert found == [("openai:m", "", 1), ("openai:m", "batch", MANY)]


def test_replies_to_rows_that_changed_meanwhile_are_paid_in_the_tier_of_batches(server, ledger):
    server.polls_before_end = 2
    with pytest.raises(Stopped):
        paying(server, ledger, JOBS, stopping(1))
    paying(server, ledger, [job(i, prompt="New. ") for i in range(MANY)])
    (part,) = spending.read(ledger)
    assert (part.service, part.tier, part.requests) == ("openai:m", "batch", 2 * MANY)


def test_a_job_that_the_service_does_not_know_is_one_line_with_the_way_out(server, ledger):
    with pytest.raises(Stopped):
        run(server, ledger, clock=stopping(1))
    server.jobs.clear()
    with pytest.raises(McrError, match="knows no batch") as raised:
        run(server, ledger)
    assert "\n" not in str(raised.value)
    command = str(raised.value).partition("after: ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    assert run(server, ledger).settled == MANY


@ALL
def test_an_error_with_details_inside_a_result_is_read(server, ledger):
    def spoil(results):
        key, _ = results[0]
        error = {"code": 3, "message": "token count 9 exceeds 8", "details": [{"a": {"b": 1}}]}
        failed = {"error": error}
        if not server.google:
            failed = {"status_code": 400, "body": {"error": {"message": "prompt is too long"}}}
        return [(key, failed), *results[1:]]

    server.spoil = spoil
    run(server, ledger)
    outcomes = [a.outcome for a in ledger.answers(SCOPE).values()]
    assert outcomes == [Outcome.PROMPT_TOO_LONG, *[Outcome.OK] * 11]


def test_a_parameter_that_openai_refuses_in_a_batch_is_left_out_of_the_next(openai, ledger):
    openai.make = lambda: OpenAI("m")
    openai.refuses = {"seed"}
    assert run(openai, ledger).settled == MANY
    assert [len(job.requests) for job in openai.jobs] == [12, 12]
    assert openai.purposes == [b"batch"] * 2 and verdicts(ledger) == RIGHT


def test_a_signal_that_the_client_turns_into_an_error_of_the_connection_ends_the_run(
    server, ledger, monkeypatch
):
    def send(*unused, **options):
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped):
        run(server, ledger, clock=stopping(1))
    monkeypatch.setattr("httpx2.HTTPTransport.handle_request", send)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM; at the service .* goes on"):
        run(server, ledger)


@pytest.mark.promise(
    "A daily quota that is used up at a submission ends the command with status 75"
)
def test_a_daily_quota_at_a_submission_stops_and_the_next_run_submits(gemini, ledger):
    gemini.make = lambda: Gemini("gemini-2.5-flash")
    used_up = gemini.error(429, "quota", quota="BatchRequestsPerDayPerProject")
    gemini.then(dataclasses.replace(used_up, fault="refuse"))
    clock = Clock()
    with pytest.raises(Stopped, match=r"BatchRequestsPerDay.*in Los Angeles") as raised:
        run(gemini, ledger, clock=clock)
    assert "\n" not in str(raised.value) and "goes on" not in str(raised.value)
    assert (states(ledger), clock.waits) == (["failed"], [])
    assert run(gemini, ledger, clock=clock).settled == MANY
    assert len(gemini.jobs) == 1 and clock.waits == [10.0]  # no search for a job of the first


@pytest.mark.promise("A key without money ends it with status 1")
def test_a_key_without_money_at_a_submission_is_one_line_without_a_wait(openai, ledger):
    openai.make, clock = lambda: OpenAI("m"), Clock()
    no = openai.error(429, f"no money, {openai.key}", code="insufficient_quota")
    openai.then(dataclasses.replace(no, fault="refuse"))
    with pytest.raises(McrError, match=r"\[key\].*balance of the key in OPENAI_API") as raised:
        run(openai, ledger, clock=clock)
    assert not isinstance(raised.value, Stopped) and "\n" not in str(raised.value)
    assert (states(ledger), clock.waits, openai.jobs) == (["failed"], [], [])


@pytest.mark.promise("If too many tokens wait in batches while another job of the workdir is open")
def test_a_full_queue_stops_while_another_job_is_open_and_is_an_error_else(openai, ledger):
    openai.make = lambda: OpenAI("m")
    openai.job_ends.append("FAILED")
    with pytest.raises(McrError, match="failed at the service: Enqueued token limit") as raised:
        run(openai, ledger)
    assert not isinstance(raised.value, Stopped)
    looked_at = openai._looked_at
    openai._looked_at = lambda job: job is not openai.jobs[1] and looked_at(job)  # it goes on
    openai.job_ends.extend(["SUCCEEDED", "FAILED"])
    generator = Batched(openai.make(), 600.0, Clock().pause)
    generator.wire.most_requests = 7
    with pytest.raises(Stopped, match=r"batch_3 .* was not taken: Enqueued .*batch_2 goes on"):
        driver.run(SCOPE, JOBS, generator, ledger, reader=READER)
    assert states(ledger) == ["failed", "polling", "failed"]
    openai._looked_at = looked_at
    assert run(openai, ledger).settled == MANY and verdicts(ledger) == RIGHT
    assert [len(job.requests) for job in openai.jobs] == [12, 7, 5] and len(openai.calls) == 5


@pytest.mark.promise("On Vertex AI there are no batches here")
def test_batches_on_vertex_ai_are_refused_before_a_call(gemini, monkeypatch):
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    with pytest.raises(UsageError, match="Cloud Storage or BigQuery only"):
        Batched(Gemini("gemini-2.5-flash"), 1.0)
    assert not gemini.jobs and not gemini.calls


def test_an_endpoint_with_a_service_tier_takes_no_batches(openai):
    endpoint = Endpoint("ours", openai.url, "OPENAI_API_KEY", "flex")
    with pytest.raises(UsageError, match="leave service_tier out of ours"):
        Batched(OpenAI("m", endpoint=endpoint), 1.0)


@pytest.mark.parametrize("date", ["2027-01-14", None])
def test_replies_of_a_batch_keep_the_retirement_of_the_model(openai, ledger, date):
    openai.make, openai.shutdown_date = lambda: OpenAI("m"), date
    run(openai, ledger)
    found = {a.model_status for a in ledger.answers(SCOPE).values()}
    assert found == {f"shuts down {date}" if date else ""}


def test_a_wait_beyond_the_patience_is_not_waited_for(server, ledger):
    no = server.error(429, "later", retry_after="86400")
    server.then(dataclasses.replace(no, fault="refuse"))
    clock = Clock()
    with pytest.raises(McrError, match=r"no batch was submitted: .* asks to wait 86,400 s"):
        run(server, ledger, clock=clock)
    assert clock.waits == [] and states(ledger) == ["failed"]
    server._get_batch = lambda path: no
    with pytest.raises(McrError, match=r"no answer about a batch .* asks to wait 86,400 s"):
        run(server, ledger, clock=clock)
    assert clock.waits == []


@pytest.mark.parametrize("body", [b"{}", b"[" * 100_000, b'{"data": 7}', b"<html>"])
def test_a_list_that_cannot_be_read_is_not_a_list_without_the_job(openai, ledger, body):
    openai.make = lambda: OpenAI("m")
    submitting(ledger, openai)
    listed = openai._get_batch
    answers = [openai.raw(body), openai.raw(body)]
    openai._get_batch = lambda path: answers.pop() if answers else listed(path)
    clock = Clock()
    clock.time += batch_jobs.LOOKUP_S * 2  # one look is all that is left
    assert run(openai, ledger, clock=clock).settled == MANY
    assert len(openai.jobs) == 1


@pytest.mark.parametrize("name", ["", 7, "batch_1\n\x1b[2J", "b" * 400])
def test_a_name_of_a_job_that_cannot_be_one_is_looked_up(openai, ledger, name):
    openai.make = lambda: OpenAI("m")
    batch, names = openai._batch, [name]

    def named(job, done=False):
        return {**batch(job, done), **({"id": names.pop()} if names else {})}

    openai._batch = named
    assert run(openai, ledger).settled == MANY and len(openai.jobs) == 1


def test_a_service_without_batches_is_refused():
    class Other:
        identity = "other"

    with pytest.raises(McrError, match="other takes no batches"):
        Batched(Other(), 1.0)


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1].split(":")
import test_batch as t
from mcr_jax.generate import batch_jobs
from mcr_jax.generate.ledger import Ledger
batch_jobs.POLL_S, batch_jobs.LOOKUP_S = (0.01, 0.01), 0.0
kind, file, path = sys.argv[2:]
t.gemini_batch.INLINE_BYTES = 0 if file else 10**6
service = t.OpenAI("m") if kind == "openai" else t.Gemini("gemini-2.5-flash")
with Ledger(path) as ledger:
    generator = t.Batched(service, 60.0)
    print(t.driver.run(t.SCOPE, t.JOBS, generator, ledger, reader=t.READER).settled)
"""


@pytest.mark.promise("re-attaches, also after `kill -9` at any moment")
@pytest.mark.promise(
    "If a run was killed before it got the name of the job, the next one looks it up"
)
@pytest.mark.parametrize(
    ("server", "step"),
    quick(
        2,
        [
            ("gemini", "submit"),
            ("openai", "download"),
            ("gemini file", "upload"),
            ("gemini file", "submit"),
            ("gemini", "poll"),
            ("gemini file", "download"),
            ("openai", "upload"),
            ("openai", "submit"),
            ("openai", "poll"),
        ],
    ),
    indirect=["server"],
)
def test_a_kill_at_any_step_loses_nothing_and_submits_no_row_twice(server, tmp_path, request, step):
    kind, _, file = request.node.callspec.params["server"].partition(" ")
    path = tmp_path / "killed.sqlite"
    folder = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, f"{folder}:{folder.parent}", kind, file, str(path)]
    server.held = step
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not server.reached.wait(0.01):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.release()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[-1] == str(MANY)
    assert len(server.jobs) == 1 and server.calls == []
    with Ledger(path, readonly=True) as ledger:
        assert verdicts(ledger) == RIGHT and ledger.count() == MANY
        assert open_batches(ledger) == []
