"""The driver asks for missing rows, writes every answer, and resumes."""

import asyncio
import dataclasses
import os
import signal
import threading

import pytest

from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate import driver
from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.generate.pace import Fault, Pacer
from mcr_jax.generate.questions import Reader
from mcr_jax.sigterm import stoppable

SCOPE = Scope("sample", "m")


class Scripted:
    """Answers (key, index) by a function of (key, index, number of earlier calls for it)."""

    identity = "scripted/1"

    def __init__(self, answer=lambda key, index, before: "text"):
        self.answer, self.batches, self.calls, self.limits = answer, [], [], []

    def generate(self, requests):
        self.batches.append([(r.key, r.wanted) for r in requests])
        for request in requests:
            for index in request.wanted:
                yield self.reply(request, index)

    def reply(self, request, index):
        before = self.calls.count((request.key, index))
        self.calls.append((request.key, index))
        self.limits.append(request.max_tokens)
        answer = self.answer(request.key, index, before)
        reply = {"key": request.key, "index": index, "text": "", "outcome": Outcome.OK}
        return Reply(**reply | ({"text": answer} if isinstance(answer, str) else answer))


class Service(Scripted):
    """Scripted service on the network."""

    most_tokens = 8192

    def __init__(self, *args, concurrency=4, patience=60.0):
        super().__init__(*args)
        self.pacer = Pacer(concurrency, patience=patience, backoff=0.001, longest=0.002)
        self.in_flight = self.closed = 0

    async def call(self, request, index):
        reply = self.reply(request, index)
        self.in_flight += 1
        await asyncio.sleep(0)
        self.in_flight -= 1
        return reply

    async def close(self):
        self.closed += 1


BOTH = pytest.mark.parametrize("kind", [Scripted, Service])


def job(case="c", n=1, prompt="?", **options):
    return driver.Job(
        row=RowKey(stage="sample", case=case, model="m", sample=0),
        request=Request(key=case, messages=({"role": "user", "content": prompt},), n=n, **options),
    )


def failing(outcome, times=10**6, **more):
    return lambda key, index, before: (
        {"outcome": outcome, "error": f"{outcome} of {key}", **more} if before < times else "text"
    )


def integer(request, text):
    return {"value": int(text)}


VERDICTS = Reader(parse=integer, name="integer/1")
TEXTS = Reader(parse=lambda request, text: text, name="text/1")


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def run(jobs, generator, ledger, **options):
    return driver.run(SCOPE, jobs, generator, ledger, **options)


def attempts(ledger):
    return {(row.case, row.sample): a for row, a in ledger.answers(SCOPE).items()}


@BOTH
def test_all_rows_are_answered_once_and_a_second_run_asks_nothing(ledger, kind):
    jobs = [job(f"c{i}", n=3) for i in range(5)]
    generator = kind(lambda key, index, before: f"{key}/{index}")
    assert run(jobs, generator, ledger) == driver.Summary(total=15, asked=15, settled=15)
    assert {(c, s): a.text for (c, s), a in attempts(ledger).items()} == {
        (f"c{i}", s): f"c{i}/{s}" for i in range(5) for s in range(3)
    }
    assert run(jobs, generator, ledger) == driver.Summary(total=15, asked=0, settled=0)
    assert len(generator.calls) == 15


def test_a_service_can_be_called_while_the_event_loop_of_a_notebook_runs(ledger):
    async def cell():
        return run([job(f"c{i}") for i in range(5)], Service(), ledger)

    assert asyncio.run(cell()).settled == 5


def test_generator_that_batches_gets_all_open_requests_in_one_call(ledger):
    generator = Scripted()
    run([job("a", n=2), job("b")], generator, ledger)
    assert generator.batches == [[("a", (0, 1)), ("b", (0,))]]


def test_more_samples_ask_for_the_new_ones_only(ledger):
    run([job(n=2)], Scripted(), ledger)
    generator = Scripted()
    run([job(n=5)], generator, ledger)
    assert generator.calls == [("c", 2), ("c", 3), ("c", 4)]


def test_held_counts_the_rows_that_a_run_would_not_ask_for(ledger):
    def held(*jobs):
        work = driver.declare(SCOPE, jobs, generator, ledger)
        assert work.total == work.held + work.asked == sum(job.request.n for job in jobs)
        return work.held

    generator = Scripted(failing(Outcome.INFRA_ERROR))
    assert held(job(n=2)) == 0
    run([job(n=2)], Scripted(), ledger)
    run([job(n=1)], Scripted(), ledger)
    assert held(job(n=3)) == 2
    run([job("other")], generator, ledger)
    assert held(job("other"), job(n=2)) == 2


def test_declared_work_is_answered_once(ledger):
    generator = Scripted()
    work = driver.declare(SCOPE, [job("a", n=2), job("b")], generator, ledger)
    assert not generator.calls and not any(attempts(ledger).values())
    assert driver.answer(work, generator, ledger) == driver.Summary(total=3, asked=3, settled=3)
    assert generator.calls == [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    "change",
    [
        *({"prompt": "another"}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}),
        *({"top_k": 5}, {"stop": ("</answer>",)}),
    ],
)
def test_anything_that_changes_answers_asks_again(ledger, change):
    run([job()], Scripted(lambda *_: "old"), ledger)
    run([job(**change)], Scripted(lambda *_: "new"), ledger)
    assert attempts(ledger)["c", 0].text == "new"


def test_a_request_without_filters_and_stops_has_the_digest_it_always_had():
    before_they_existed = "6a944e57498919bda8658e77f27bf747df80ac106e41fde031aaa1371dd40eb0"
    assert job().request.digest("scripted/1") == before_they_existed


def test_the_order_of_stops_changes_no_answer():
    one, other = (job(stop=stop).request.digest("m") for stop in (("a", "b"), ("b", "a")))
    assert one == other


def test_another_identity_asks_again(ledger):
    run([job()], Scripted(lambda *_: "old"), ledger)
    other = Scripted(lambda *_: "new")
    other.identity = "scripted/2"
    assert run([job()], other, ledger).asked == 1


def test_a_reply_is_durable_before_progress_counts_it_even_if_no_other_arrives(ledger):
    counted = threading.Event()

    def answer(key, index, before):
        # The first reply is written while the generator works on the second.
        assert key == "c0" or counted.wait(timeout=30)
        return "text"

    def progress(settled):
        assert ledger.count() >= settled
        counted.set()

    assert run([job("c0"), job("c1")], Scripted(answer), ledger, progress=progress).settled == 2


def test_a_signal_while_the_last_rows_are_written_loses_none_of_them(ledger, monkeypatch):
    write_all = ledger.write_all

    def slow(groups):
        os.kill(os.getpid(), signal.SIGTERM)  # while the run waits for this
        threading.Event().wait(0.1)
        write_all(groups)

    monkeypatch.setattr(ledger, "write_all", slow)
    with pytest.raises(Stopped), stoppable("stopped"):
        run([job("c0")], Scripted(), ledger)
    assert ledger.count() == 1


def test_replies_that_come_together_are_written_together(ledger, monkeypatch):
    batches, write_all = [], ledger.write_all

    def watched(groups):
        batches.append(groups := list(groups))
        write_all(groups)

    monkeypatch.setattr(ledger, "write_all", watched)
    run([job(f"c{i}") for i in range(500)], Service(concurrency=100), ledger)
    assert sum(map(len, batches)) == ledger.count() == 500
    assert len(batches) < 100


def test_a_run_after_an_error_resumes_with_the_missing_rows(ledger):
    def breaks(key, index, before):
        if key == "c2":
            raise McrError("no such model")
        return "text"

    jobs = [job(f"c{i}") for i in range(4)]
    with pytest.raises(McrError, match="no such model"):
        run(jobs, Scripted(breaks), ledger)
    assert {c for (c, _), a in attempts(ledger).items() if a} == {"c0", "c1"}
    generator = Scripted()
    run(jobs, generator, ledger)
    assert [key for key, _ in generator.calls] == ["c2", "c3"]


def test_an_error_that_ends_the_run_drops_waiting_calls_and_records_those_in_flight(ledger):
    def answer(key, index, before):
        if key == "c1":
            raise McrError("bad key")
        return "text"

    generator = Service(answer, concurrency=3)
    with pytest.raises(McrError, match="bad key"):
        run([job(f"c{i}") for i in range(5000)], generator, ledger)
    assert len(generator.calls) <= 4 and generator.closed == 1
    assert ledger.count() == len(generator.calls) - 1


@BOTH
def test_failed_infrastructure_is_tried_again(ledger, kind):
    generator = kind(failing(Outcome.INFRA_ERROR, times=2))
    assert run([job()], generator, ledger).settled == 1
    assert attempts(ledger)["c", 0].outcome is Outcome.OK
    assert len(generator.calls) == 3


def test_a_row_without_tries_left_stays_open_for_the_next_run(ledger):
    summary = run([job()], Scripted(failing(Outcome.INFRA_ERROR)), ledger)
    assert (summary.asked, summary.settled) == (1, 0)
    assert summary.errors == ("INFRA_ERROR of c",)
    assert run([job()], Scripted(), ledger).settled == 1
    assert attempts(ledger)["c", 0].attempt == 4


def test_calls_without_an_answer_leave_one_row_after_they_are_given_up(ledger):
    def answer(key, index, before):
        return {"outcome": Outcome.INFRA_ERROR, "error": "500"} if key == "c3" else "text"

    generator = Service(answer)
    summary = run([job(f"c{i}") for i in range(9)], generator, ledger)
    assert (summary.settled, summary.errors, ledger.count()) == (8, ("500",), 9)
    assert generator.calls.count(("c3", 0)) == 10
    assert attempts(ledger)["c3", 0].outcome is Outcome.INFRA_ERROR


@pytest.mark.parametrize("fault", [Fault.AWAY, Fault.BUSY])
def test_a_service_that_is_away_or_busy_costs_a_row_no_tries(ledger, fault):
    failure = {"outcome": Outcome.INFRA_ERROR, "error": "away", "fault": fault}
    generator = Service(concurrency=64)
    generator.answer = lambda *_: failure if len(generator.calls) < 200 else "text"
    summary = run([job(f"c{i}") for i in range(64)], generator, ledger)
    assert (summary.settled, ledger.count()) == (64, 64)
    assert {attempt.attempt for attempt in attempts(ledger).values()} == {1}


@pytest.mark.promise(
    "`mcr judge` waits up to `judge.patience` seconds (600) for an unreachable service, with a "
    "countdown."
)
def test_a_service_that_stays_away_ends_the_run_with_one_line_and_keeps_the_answers(ledger):
    def answer(key, index, before):
        failure = {"outcome": Outcome.INFRA_ERROR, "error": "refused", "fault": Fault.AWAY}
        return "text" if key == "c0" else failure

    with pytest.raises(McrError, match=r"no answer for .*refused.*judge\.patience") as raised:
        run([job(f"c{i}") for i in range(9)], Service(answer, patience=0.2), ledger)
    assert "\n" not in str(raised.value)
    assert ledger.count() == 1


def test_a_wait_beyond_patience_ends_the_run_at_once(ledger):
    failure = {"outcome": Outcome.INFRA_ERROR, "error": "429", "fault": Fault.BUSY}
    generator = Service(lambda *_: {**failure, "retry_after": 7200.0}, concurrency=1)
    with pytest.raises(McrError, match=r"asks to wait 7,200 s \(429\)"):
        run([job()], generator, ledger)
    assert len(generator.calls) == 1


@pytest.mark.promise(
    "On SIGTERM or Ctrl-C it waits up to 10 seconds for calls in flight, records their replies and "
    "exits with 75."
)
@pytest.mark.promise("A second Ctrl-C stops at once.")
@pytest.mark.parametrize(
    ("number", "times", "error"),
    [
        (signal.SIGTERM, 1, Stopped),
        (signal.SIGINT, 1, Stopped),
        (signal.SIGINT, 2, KeyboardInterrupt),
    ],
)
def test_a_signal_keeps_the_answers_so_far_and_starts_no_more_calls(ledger, number, times, error):
    class Slow(Service):
        async def call(self, request, index):
            reply = await super().call(request, index)
            if request.key in ("c9", "c10")[:times]:
                os.kill(os.getpid(), number)
            if len(self.calls) > 8:  # in flight when the signal comes
                await asyncio.sleep(0.05)
            return reply

    generator, before = Slow(concurrency=4), signal.getsignal(number)
    with pytest.raises(error):
        run([job(f"c{i}") for i in range(500)], generator, ledger)
    assert signal.getsignal(number) is before
    assert len(generator.calls) < 20
    lost = len(generator.calls) - ledger.count()
    assert 0 <= lost <= (4 if times > 1 else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_service_that_is_away(ledger, number):
    def answer(key, index, before):
        if len(generator.calls) < 9:
            return "text"
        if len(generator.calls) == 20:
            os.kill(os.getpid(), number)
        return {"outcome": Outcome.INFRA_ERROR, "error": "refused", "fault": Fault.AWAY}

    generator = Service(answer)
    with pytest.raises(Stopped):
        run([job(f"c{i}") for i in range(50)], generator, ledger)
    assert ledger.count() == 8
    assert len(generator.calls) < 30


@BOTH
@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.TRUNCATED, Outcome.PROMPT_TOO_LONG])
def test_a_sample_that_has_an_outcome_is_not_asked_for_again(ledger, kind, outcome):
    generator = kind(failing(outcome))
    assert run([job()], generator, ledger).settled == 1
    assert run([job()], generator, ledger).asked == 0
    assert len(generator.calls) == 1


@BOTH
@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.TRUNCATED, Outcome.MALFORMED])
def test_a_verdict_that_is_not_ok_is_asked_for_again_by_every_run(ledger, kind, outcome):
    generator = kind(failing(outcome, times=5))
    settled = [run([job()], generator, ledger, reader=TEXTS).settled for _ in range(2)]
    assert (settled, len(generator.calls)) == ([0, 1], 6)


@BOTH
def test_a_prompt_that_is_too_long_is_not_asked_again(ledger, kind):
    generator = kind(failing(Outcome.PROMPT_TOO_LONG))
    for _ in range(2):
        run([job()], generator, ledger, reader=VERDICTS)
    assert len(generator.calls) == 1


@pytest.mark.promise("after a truncated reply with twice the tokens")
def test_a_truncated_verdict_is_asked_for_with_twice_the_tokens_each_time(ledger):
    generator = Service(failing(Outcome.TRUNCATED, times=5, text="cut"))
    for _ in range(2):
        run([job(max_tokens=1000)], generator, ledger, reader=TEXTS)
    assert generator.limits == [1000, 2000, 4000, 8000, 8192, 8192]
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.max_tokens, answer.attempt) == (Outcome.OK, 8192, 6)


@BOTH
def test_a_reply_of_a_wrong_form_is_malformed_keeps_its_text_and_is_retried(ledger, kind):
    generator = kind(lambda key, index, before: "7" if before > 2 else "seven")
    assert run([job()], generator, ledger, reader=VERDICTS).settled == 0
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.text, answer.verdict) == (Outcome.MALFORMED, "seven", None)
    assert "seven" in answer.error and ledger.count() == 3
    assert run([job()], generator, ledger, reader=VERDICTS).settled == 1
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.verdict, answer.attempt) == (Outcome.OK, {"value": 7}, 4)
    assert answer.reading == "integer/1"


@BOTH
def test_text_of_a_blocked_reply_is_never_parsed(ledger, kind):
    run([job()], kind(failing(Outcome.BLOCKED, text="7")), ledger, reader=VERDICTS)
    assert attempts(ledger)["c", 0].verdict is None


def test_a_stored_reply_is_read_again_by_another_parser_without_a_call(ledger):
    generator = Service(lambda key, *_: {"c0": "7", "c1": "seven", "c2": "8"}[key])
    jobs = [job(f"c{i}", prompt=str(i)) for i in range(3)]
    run(jobs, generator, ledger, reader=VERDICTS)
    before = len(generator.calls)

    def strict(request, text):
        if text == "8":
            raise ValueError("eight is out of range now")
        return {"value": 7}

    generator.answer = lambda *_: "9"
    summary = run(jobs, generator, ledger, reader=Reader(parse=strict, name="integer/2"))
    assert (summary.asked, len(generator.calls) - before) == (1, 1)  # c2 alone
    assert [a.verdict for a in attempts(ledger).values()] == [{"value": 7}] * 3
    assert {a.reading for a in attempts(ledger).values()} == {"integer/2"}


def test_equal_questions_are_asked_once_and_each_row_keeps_its_record(ledger):
    generator = Service(lambda *_: {"text": "7", "usage": Usage(prompt=5, output=1)})
    jobs = [job(f"c{i}", prompt=f"{i % 2}?") for i in range(6)]
    assert run(jobs, generator, ledger, reader=VERDICTS).settled == 6
    assert generator.calls == [("c0", 0), ("c1", 0)]
    rows = {case: a for (case, _), a in attempts(ledger).items()}
    assert all(a.verdict == {"value": 7} and a.text == "7" for a in rows.values())
    assert [rows[f"c{i}"].shared for i in range(6)] == [
        *(None, None, rows["c0"].id, rows["c1"].id, rows["c0"].id, rows["c1"].id),
    ]
    assert sum(a.usage.prompt for a in rows.values()) == 10


def test_an_equal_question_of_another_model_is_answered_from_the_ledger(ledger):
    generator = Service(lambda *_: "7")
    run([job()], generator, ledger, reader=VERDICTS)
    (first,) = attempts(ledger).values()
    other = Scope("sample", "other")
    moved = [
        dataclasses.replace(j, row=dataclasses.replace(j.row, model="other"))
        for j in (job("d"), job("e", prompt="another"))
    ]
    summary = driver.run(other, moved, generator, ledger, reader=VERDICTS)
    assert (summary.total, summary.asked) == (2, 1)
    copy, own = ledger.answers(other).values()
    assert (copy.shared, copy.verdict, copy.usage) == (first.id, {"value": 7}, Usage())
    assert own.shared is None


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"max_tokens": 9}, {"seed": 1}])
def test_questions_that_differ_in_a_setting_share_nothing(ledger, change):
    generator = Service(lambda *_: "7")
    run([job("c0"), job("c1", **change)], generator, ledger, reader=VERDICTS)
    assert len(generator.calls) == 2


@BOTH
def test_samples_of_equal_prompts_are_separate_draws(ledger, kind):
    generator = kind()
    run([job("c0", n=2), job("c1")], generator, ledger)
    run([job("c0", n=2), job("c1"), job("c2")], generator, ledger)
    assert len(generator.calls) == 4
    assert all(a.shared is None for a in attempts(ledger).values())


def test_repeats_of_a_verdict_are_separate_draws(ledger):
    again = job("c1")
    again = dataclasses.replace(again, row=dataclasses.replace(job("c0").row, repeat=1))
    generator = Service(lambda *_: "7")
    run([job("c0"), again], generator, ledger, reader=VERDICTS)
    assert len(generator.calls) == 2


def test_verdicts_of_another_version_are_asked_for_once_a_run_and_count_again_later(ledger):
    version = ["a"]
    generator = Service(lambda *_: {"text": "7", "model_version": version[0]})

    def calls_and_open_rows(counted):
        before = len(generator.calls)
        reader = dataclasses.replace(VERDICTS, version=counted)
        summary = run([job("c0"), job("c1", prompt="!")], generator, ledger, reader=reader)
        return len(generator.calls) - before, summary.asked - summary.settled

    assert calls_and_open_rows("") == (2, 0)
    assert calls_and_open_rows("b") == (2, 2)
    version[0] = "b"
    assert calls_and_open_rows("b") == (2, 0)
    assert [calls_and_open_rows(counted) for counted in ("a", "b", "")] == [(0, 0)] * 3


def test_a_ledger_that_cannot_be_written_ends_the_run(ledger):
    run([job("c0")], Scripted(), ledger)
    work = driver.declare(SCOPE, [job(f"c{i}") for i in range(9)], Service(), ledger)
    row = dataclasses.replace(attempts(ledger)["c0", 0].row, case="c3")  # by another process
    digest = job("c3").request.digest("scripted/1")
    ledger.write(Attempt(row=row, digest=digest, attempt=1, outcome=Outcome.OK))
    with pytest.raises(McrError, match="UNIQUE"):
        driver.answer(work, Service(), ledger)


def test_only_the_failed_rows_of_a_batch_are_asked_again(ledger):
    def answer(key, index, before):
        failed = key == "c1" and not before
        return {"outcome": Outcome.INFRA_ERROR, "error": "lost"} if failed else "text"

    generator = Scripted(answer)
    run([job(f"c{i}", n=2) for i in range(3)], generator, ledger)
    assert generator.batches[1] == [("c1", (0, 1))]


def test_row_without_a_reply_is_left_open(ledger):
    class Silent(Scripted):
        def generate(self, requests):
            yield from ()

    summary = run([job()], Silent(), ledger)
    assert (summary.settled, summary.errors) == (0, ("no reply",))
    assert attempts(ledger)["c", 0] is None


@BOTH
def test_progress_adds_up_to_the_settled_rows(ledger, kind):
    counts = []

    def answer(key, index, before):
        return {"outcome": Outcome.INFRA_ERROR, "error": "lost"} if key == "c0" else "text"

    generator = kind(answer)
    summary = run([job(f"c{i}", n=2) for i in range(4)], generator, ledger, progress=counts.append)
    assert sum(counts) == summary.settled == 6


def test_two_jobs_for_one_row_are_refused_before_anything_is_asked(ledger):
    generator = Scripted()
    with pytest.raises(McrError, match="twice"):
        run([job(), job()], generator, ledger)
    assert not generator.calls


def test_no_jobs_are_no_work_and_no_row_is_wanted_then(ledger):
    run([job()], Scripted(), ledger)
    assert run([], Scripted(), ledger) == driver.Summary(total=0, asked=0, settled=0)
    assert attempts(ledger) == {}


def test_a_backoff_is_never_longer_than_the_patience():
    pacer = Pacer(1, patience=0.1, clock=lambda: 0.0)
    pacer.failed(pacer.begin(), Fault.AWAY, None, "refused")
    assert pacer.left() == 0.1  # 0 is for a service that asks to wait for longer
