"""The driver asks for what is missing, writes what arrives, and goes on where it was."""

import threading

import pytest

from mcr_jax.errors import McrError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.generate.ledger import Ledger, RowKey, Scope

SCOPE = Scope("sample", "m")
AT_ONCE = driver.Retry(attempts=3, backoff=0.0)


class Scripted:
    """Answers (key, index) by a function of (key, index, how often it was asked before)."""

    identity = "scripted/1"

    def __init__(self, answer=lambda key, index, before: "text", concurrency=1):
        self.answer, self.concurrency = answer, concurrency
        self.batches, self.asked = [], []
        self._lock = threading.Lock()

    def generate(self, requests):
        with self._lock:
            self.batches.append([(r.key, r.wanted) for r in requests])
        for request in requests:
            for index in request.wanted:
                with self._lock:
                    before = self.asked.count((request.key, index))
                    self.asked.append((request.key, index))
                said = self.answer(request.key, index, before)
                reply = {"key": request.key, "index": index, "text": "", "outcome": Outcome.OK}
                yield Reply(**reply | ({"text": said} if isinstance(said, str) else said))


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


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def run(jobs, generator, ledger, **options):
    return driver.run(SCOPE, jobs, generator, ledger, **{"retry": AT_ONCE} | options)


def attempts(ledger):
    return {(row.case, row.sample): a for row, a in ledger.answers(SCOPE).items()}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_all_rows_are_answered_once_and_a_second_run_asks_nothing(ledger, concurrency):
    jobs = [job(f"c{i}", n=3) for i in range(5)]
    generator = Scripted(lambda key, index, before: f"{key}/{index}", concurrency)
    assert run(jobs, generator, ledger) == driver.Summary(total=15, asked=15, settled=15)
    assert {(c, s): a.text for (c, s), a in attempts(ledger).items()} == {
        (f"c{i}", s): f"c{i}/{s}" for i in range(5) for s in range(3)
    }
    assert run(jobs, generator, ledger) == driver.Summary(total=15, asked=0, settled=0)
    assert len(generator.asked) == 15


def test_generator_that_batches_gets_all_open_requests_in_one_call(ledger):
    generator = Scripted()
    run([job("a", n=2), job("b")], generator, ledger)
    assert generator.batches == [[("a", (0, 1)), ("b", (0,))]]


def test_more_samples_ask_for_the_new_ones_only(ledger):
    run([job(n=2)], Scripted(), ledger)
    generator = Scripted()
    run([job(n=5)], generator, ledger)
    assert generator.asked == [("c", 2), ("c", 3), ("c", 4)]


def test_what_is_held_is_what_a_run_would_not_ask_for(ledger):
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


def test_work_that_is_declared_is_answered_once(ledger):
    generator = Scripted()
    work = driver.declare(SCOPE, [job("a", n=2), job("b")], generator, ledger)
    assert not generator.asked and not any(attempts(ledger).values())
    assert driver.answer(work, generator, ledger) == driver.Summary(total=3, asked=3, settled=3)
    assert generator.asked == [("a", 0), ("a", 1), ("b", 0)]


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


def test_reply_is_in_the_ledger_before_the_next_one_is_made(ledger):
    counts = []

    def answer(key, index, before):
        counts.append(ledger.count())
        return "text"

    run([job(f"c{i}") for i in range(4)], Scripted(answer), ledger)
    assert counts == [0, 1, 2, 3]


def test_run_that_broke_off_goes_on_with_the_rest(ledger):
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
    assert [key for key, _ in generator.asked] == ["c2", "c3"]


def test_error_that_ends_the_run_stops_calls_that_wait(ledger):
    def refuse(key, index, before):
        raise McrError("bad key")

    generator = Scripted(refuse, concurrency=2)
    with pytest.raises(McrError, match="bad key"):
        run([job(f"c{i}") for i in range(5000)], generator, ledger)
    assert len(generator.asked) < 5000


@pytest.mark.parametrize("concurrency", [1, 2])
def test_failed_infrastructure_is_tried_again_and_every_attempt_is_kept(ledger, concurrency):
    generator = Scripted(failing(Outcome.INFRA_ERROR, times=2), concurrency)
    assert run([job()], generator, ledger).settled == 1
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.attempt, ledger.count()) == (Outcome.OK, 3, 3)


def test_row_whose_tries_are_used_up_stays_open_for_the_next_run(ledger):
    summary = run([job()], Scripted(failing(Outcome.INFRA_ERROR)), ledger)
    assert (summary.asked, summary.settled) == (1, 0)
    assert summary.errors == ("INFRA_ERROR of c",)
    assert run([job()], Scripted(), ledger).settled == 1
    assert attempts(ledger)["c", 0].attempt == 4


@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.TRUNCATED, Outcome.PROMPT_TOO_LONG])
def test_settled_outcome_is_not_asked_again(ledger, outcome):
    generator = Scripted(failing(outcome))
    assert run([job()], generator, ledger, parse=integer).settled == 1
    assert run([job()], generator, ledger, parse=integer).asked == 0
    assert len(generator.asked) == 1


def test_reply_of_another_form_is_malformed_keeps_its_text_and_is_tried_again(ledger):
    generator = Scripted(lambda key, index, before: "7" if before else "seven")
    assert run([job()], generator, ledger, parse=integer).settled == 1
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.verdict, answer.attempt) == (Outcome.OK, {"value": 7}, 2)


def test_malformed_rows_use_up_their_tries_over_all_runs(ledger):
    generator = Scripted(lambda *_: "seven")
    one_try = driver.Retry(attempts=1, backoff=0.0)
    run([job()], generator, ledger, parse=integer, retry=one_try)
    run([job()], generator, ledger, parse=integer)
    assert len(generator.asked) == ledger.count() == 3
    answer = attempts(ledger)["c", 0]
    assert (answer.outcome, answer.text, answer.verdict) == (Outcome.MALFORMED, "seven", None)
    assert "seven" in answer.error
    assert run([job()], generator, ledger, parse=integer).asked == 0


def test_text_of_a_blocked_reply_is_never_parsed(ledger):
    generator = Scripted(failing(Outcome.BLOCKED, text="7"))
    run([job()], generator, ledger, parse=integer)
    assert attempts(ledger)["c", 0].verdict is None


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


@pytest.mark.parametrize("concurrency", [1, 3])
def test_progress_adds_up_to_the_settled_rows(ledger, concurrency):
    told = []

    def answer(key, index, before):
        return {"outcome": Outcome.INFRA_ERROR, "error": "lost"} if key == "c0" else "text"

    generator = Scripted(answer, concurrency)
    summary = run([job(f"c{i}", n=2) for i in range(4)], generator, ledger, progress=told.append)
    assert sum(told) == summary.settled == 6


def test_two_jobs_for_one_row_are_refused_before_anything_is_asked(ledger):
    generator = Scripted()
    with pytest.raises(McrError, match="twice"):
        run([job(), job()], generator, ledger)
    assert not generator.asked


def test_no_jobs_are_no_work_and_withdraw_what_was_wanted(ledger):
    run([job()], Scripted(), ledger)
    assert run([], Scripted(), ledger) == driver.Summary(total=0, asked=0, settled=0)
    assert attempts(ledger) == {}


def test_wait_doubles_from_the_backoff_up_to_the_longest():
    retry = driver.Retry(backoff=1.0, longest=5.0)
    for tries, full in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        pauses = [retry.pause(tries, None) for _ in range(50)]
        assert full / 2 <= min(pauses) <= max(pauses) <= full


def test_wait_the_service_names_replaces_the_doubling_one_within_reason():
    retry = driver.Retry(backoff=1.0, longest=60.0)
    assert retry.pause(3, 7.5) == 7.5
    assert retry.pause(1, 0.0) == 0.0
    assert retry.pause(1, 1e9) == 60.0
