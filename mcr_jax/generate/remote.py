"""Calls to a service: one event loop, with as many calls in flight as the pacer allows.

A call without an answer is retried later at no cost to its row. Only failures that may be due to
the request (an error 500, a timeout, an unreadable reply) are counted; a row is given up after
`_FAILURES_PER_ROW`. During an outage the run waits up to the pacer's patience. A call that does not
fit into config.budget waits until those in flight have ended; if it still does not, the run ends.
"""

import asyncio
import gc
import signal
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mcr_jax import console
from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate.api import Outcome, Remote, Reply
from mcr_jax.generate.budget import Amount, Payments
from mcr_jax.generate.pace import Fault
from mcr_jax.generate.questions import Question, Settler
from mcr_jax.sigterm import caught

_FAILURES_PER_ROW = 10  # free of charge; then the row is left to the next run
_GRACE_S = 10.0  # for calls in flight when the run ends early: they are paid for
_Call = tuple[Question, float, Amount]  # with its begin by the pacer and what it may cost at most


def ask(
    questions: Iterable[Question],
    remote: Remote,
    settler: Settler,
    payments: Payments | None = None,
) -> None:
    """Makes calls until every question is settled or given up.

    If the run ends early, by a signal or an error, calls in flight get 10 s to finish and are
    recorded. A second Ctrl-C ends this wait: then only the replies that have arrived are recorded.

    Raises:
      McrError: the service refuses or does not come back, or rows cannot be written.
      Stopped: SIGTERM or Ctrl-C came, the service names a later time, or the next call may go over
        config.budget.
      KeyboardInterrupt: Ctrl-C came while a signal or an error was ending the run.
    """
    run = _Run(questions, remote, settler, payments)
    gc.freeze()  # otherwise the garbage collector traverses all rows again and again
    try:
        if asyncio._get_running_loop() is None:
            asyncio.run(run.all())
        else:  # in a notebook, whose event loop is running
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, run.all()).result()
    finally:
        gc.unfreeze()


class _Run:
    def __init__(
        self,
        questions: Iterable[Question],
        remote: Remote,
        settler: Settler,
        payments: Payments | None,
    ):
        self._queue, self._remote, self._settler = deque(questions), remote, settler
        self._pacer, self._payments = remote.pacer, payments
        # Workers make one call after another: a new task for each call costs a tenth more time.
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[_Call | None]] = []
        self._in_flight = 0
        self._ending: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def all(self) -> None:
        """Makes all calls; raises the error that ended the run early."""
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()
        with caught(lambda number: self._loop.call_soon_threadsafe(self._stop, number)):
            try:
                self._fill()
                await self._finished
                await self._drain()
            finally:
                await self._remote.close()
        if self._ending is not None:
            raise self._ending

    def _fill(self) -> None:
        """Starts the calls that the pacer allows and schedules the next time to do so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = self._pacer.left()
        if self._queue and left is not None and left <= 0:
            self._end(
                McrError(
                    f"{self._pacer.given_up()}, more than config.judge.patience; every answer that "
                    "came is kept: run the command again to go on"
                )
            )
        while self._queue and self._ending is None:
            wait = self._pacer.wait()
            if wait is None:
                break
            if wait > 0:
                wake = min(wait, left) if left is not None else wait
                self._timer = self._loop.call_later(wake + 0.001, self._fill)
                break
            held = self._reserve(self._queue[0])
            if held is None:
                break
            self._start((self._queue.popleft(), self._pacer.begin(), held))
        if self._ending is not None or not (self._queue or self._in_flight):
            self._finish()

    def _reserve(self, question: Question) -> Amount | None:
        """Reserves what a call may take; None if it does not fit: ends the run if it never will."""
        if self._payments is None:
            return Amount()
        budget, most = self._payments.budget, self._payments.most(question.request)
        if budget.admits(most):
            budget.hold(most)
            return most
        if not self._in_flight:
            self._end(budget.stopped(most))
        return None

    def _start(self, call: _Call) -> None:
        """Passes a call to an idle worker, or to a new one."""
        self._in_flight += 1
        if self._idle:
            self._idle.pop().set_result(call)
            return
        worker = self._loop.create_task(self._work(call))
        self._workers.add(worker)
        worker.add_done_callback(self._worker_ended)

    async def _work(self, call: _Call | None) -> None:
        """Makes calls until it gets None instead of one."""
        while call is not None:
            try:
                await self._call(*call)
            except McrError as problem:  # before another call starts
                self._end(problem)
            finally:
                self._in_flight -= 1
                self._pacer.end()
            if self._ending is not None:
                self._finish()
                return
            next_call = self._loop.create_future()
            self._idle.append(next_call)
            self._fill()
            call = await next_call

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (problem := worker.exception()) is not None:
            self._end(problem)
            self._finish()

    async def _call(self, question: Question, began: float, held: Amount) -> None:
        start, request, paid = time.monotonic(), question.request, None
        try:
            reply = await self._remote.call(request, question.index)
            if reply.outcome is Outcome.INFRA_ERROR:
                recorded = self._failed(question, reply, began)
                paid = reply if recorded or reply.usage.prompt else None
                return
            self._pacer.answered()
            paid = reply
            retry = self._settler.settle(question, reply, time.monotonic() - start)
            if retry is not None:
                self._queue.append(retry)
        finally:
            if self._payments is not None:
                self._payments.end(request, held, paid)

    def _failed(self, question: Question, reply: Reply, began: float) -> bool:
        """Queues the question again, or records the failure and returns True."""
        self._pacer.failed(began, reply.fault, reply.retry_after, reply.error)
        if reply.fault is Fault.FAILED:
            question.failures += 1
        given_up = question.failures >= _FAILURES_PER_ROW
        if given_up:
            self._settler.settle(question, reply, 0.0)
        else:
            self._queue.append(question)
        return given_up

    def _stop(self, number: int) -> None:
        interrupted = number == signal.SIGINT
        if interrupted and self._ending is not None:
            self._ending = KeyboardInterrupt()
            for worker in self._workers:
                worker.cancel()
        else:
            by = "Ctrl-C" if interrupted else "SIGTERM"
            kept = "every answer that came is kept, call again to go on"
            self._end(Stopped(f"stopped by {by}; {kept}"))
            if interrupted and self._in_flight:
                console.say(
                    f"  waiting up to {_GRACE_S:g} s for the {self._in_flight} calls in flight, "
                    "which are paid for; Ctrl-C again stops at once"
                )
        self._finish()

    def _end(self, problem: BaseException) -> None:
        self._ending = self._ending or problem

    def _finish(self) -> None:
        for future in (*self._idle, self._finished):
            if not future.done():  # a cancelled worker cancels its future
                future.set_result(None)
        self._idle.clear()

    async def _drain(self) -> None:
        """Waits up to `_GRACE_S` for the calls in flight, then cancels them."""
        if self._workers:
            _, late = await asyncio.wait(set(self._workers), timeout=_GRACE_S)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
