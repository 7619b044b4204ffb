"""Judging by a failing service: resolved verdicts are right, and finally all are resolved.

`python -m bench.faults` and `python -m bench.outage` do the same at full size and with real waits.
"""

import contextlib

import pytest

from bench import faults, judge
from bench.loopback import Loopback
from mcr_jax import synthetic
from mcr_jax.generate import driver
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Ledger
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis

CASES = synthetic.cases(0, {"test": 15})  # 24 verdicts each


@pytest.fixture
def environment(monkeypatch):
    """Takes back what `bench` sets."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GEMINI_API_KEY", "loopback")
    return monkeypatch


@pytest.mark.parametrize(("share", "calls"), [(0.2, 2), (0.6, 4)])
def test_what_is_resolved_equals_a_run_without_faults_and_nothing_stays_unresolved(
    tmp_path, environment, share, calls
):
    right, _ = faults.resolve(tmp_path / "whole", CASES, 0.0, calls=1)
    found, missing = faults.resolve(tmp_path / "faults", CASES, share, calls=calls, late=1.0)
    assert len(found) == 24 * len(CASES)
    assert missing[-1] == 0, missing
    assert found == right


def test_a_service_that_goes_away_and_comes_back_is_waited_for_with_64_calls_in_flight(
    tmp_path, environment
):
    said = []

    class Watched(Gemini):
        """Takes the server away after 100 calls, and brings it back after 70 failures."""

        async def call(self, request, index):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 100:
                first.close()
            reply = await super().call(request, index)
            self.failures = getattr(self, "failures", 0) + (reply.outcome == "INFRA_ERROR")
            if self.failures == 70:
                said.append(self.pacer.status())
                second.enter_context(Loopback(port=port))
                self.failures += 1
            return reply

    made, reader = judge.jobs(300), Reader(parse=diagnosis.parse, name=diagnosis.READING)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        url = first.enter_context(Loopback())
        port = int(url.rpartition(":")[2])
        environment.setenv("GOOGLE_GEMINI_BASE_URL", url)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            generator = Watched(judge.MODEL, concurrency=64, backoff=0.0001)
            summary = driver.run(judge.SCOPE, made, generator, ledger, reader=reader)
            assert (summary.settled, ledger.count()) == (300, 300)
    (line,) = said
    assert line.startswith("no answer for ") and "giving up in" in line
