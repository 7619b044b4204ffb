"""Asks a service: one event loop, as many calls in flight as its pacer allows.

A call that gets no answer costs its row nothing: it is made again later. Only what may be due to
the request itself (an error 500, a timeout, a reply that cannot be read) is counted, and given up
after `_FAILURES` of a row. A service that is away is waited for up to the pacer's patience.
"""

import asyncio
import gc
import signal
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate.api import Outcome, Remote, Reply
from mcr_jax.generate.pace import Fault
from mcr_jax.generate.questions import Question, Settler
from mcr_jax.sigterm import caught

_FAILURES = 10  # failed calls of a row, which nobody paid for, until it is left for the next run
_GRACE_S = 10.0  # that calls in flight have when the run ends early: they are paid for


def ask(questions: Iterable[Question], remote: Remote, settler: Settler) -> None:
    """Asks until every question is settled or given up.

    SIGTERM, and whatever else ends the run early, lets calls in flight finish for 10 s and records
    them; Ctrl-C records what has arrived.

    Raises:
      McrError: the service refuses for good or stays away, or rows cannot be written.
      Stopped: SIGTERM came, or the service names a later time.
      KeyboardInterrupt: Ctrl-C came.
    """
    run = _Run(questions, remote, settler)
    gc.freeze()  # or all rows would be looked through for garbage again and again
    try:
        if asyncio._get_running_loop() is None:
            asyncio.run(run.all())
        else:  # a notebook's
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, run.all()).result()
    finally:
        gc.unfreeze()


class _Run:
    def __init__(self, questions: Iterable[Question], remote: Remote, settler: Settler):
        self._queue, self._remote, self._settler = deque(questions), remote, settler
        self._pacer = remote.pacer
        # A call in a task of its own would cost a tenth more: workers make one after another.
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[tuple[Question, float] | None]] = []
        self._in_flight = 0
        self._ending: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def all(self) -> None:
        """Asks everything; raises what ended it early."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        with caught(lambda number: self._loop.call_soon_threadsafe(self._stop, number)):
            try:
                self._fill()
                await self._over
                await self._drain()
            finally:
                await self._remote.close()
        if self._ending is not None:
            raise self._ending

    def _fill(self) -> None:
        """Starts calls as far as the pacer allows, and arranges for the next look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = self._pacer.left()
        if self._queue and left is not None and left <= 0:
            self._end(
                McrError(
                    f"{self._pacer.given_up()}; more than config.judge.patience. Every answer that "
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
            self._hand_out((self._queue.popleft(), self._pacer.begin()))
        if self._ending is not None or not (self._queue or self._in_flight):
            self._finish()

    def _hand_out(self, call: tuple[Question, float]) -> None:
        """Gives a call to a worker."""
        self._in_flight += 1
        if self._idle:
            self._idle.pop().set_result(call)
            return
        worker = self._loop.create_task(self._work(call))
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    async def _work(self, call: tuple[Question, float] | None) -> None:
        """Makes calls until there are none."""
        while call is not None:
            try:
                await self._call(*call)
            except McrError as problem:  # before another call is handed out
                self._end(problem)
            finally:
                self._in_flight -= 1
                self._pacer.end()
            if self._ending is not None:
                self._finish()
                return
            following = self._loop.create_future()
            self._idle.append(following)
            self._fill()
            call = await following

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (problem := worker.exception()) is not None:
            self._end(problem)
            self._finish()

    async def _call(self, question: Question, began: float) -> None:
        start = time.monotonic()
        reply = await self._remote.call(question.request, question.index)
        if reply.outcome is Outcome.INFRA_ERROR:
            self._failed(question, reply, began)
            return
        self._pacer.answered()
        again = self._settler.settle(question, reply, time.monotonic() - start)
        if again is not None:
            self._queue.append(again)

    def _failed(self, question: Question, reply: Reply, began: float) -> None:
        self._pacer.failed(began, reply.fault, reply.retry_after, reply.error)
        if reply.fault is Fault.FAILED:
            question.failures += 1
        if question.failures >= _FAILURES:
            self._settler.settle(question, reply, 0.0)
        else:
            self._queue.append(question)

    def _stop(self, number: int) -> None:
        if number == signal.SIGINT:
            self._ending = KeyboardInterrupt()  # also while calls are awaited after SIGTERM
            for worker in self._workers:
                worker.cancel()
        else:
            self._end(
                Stopped("stopped by SIGTERM; every answer that came is kept, call again to go on")
            )
        self._finish()

    def _end(self, why: BaseException) -> None:
        self._ending = self._ending or why

    def _finish(self) -> None:
        for idle in self._idle:
            if not idle.done():  # or cancelled with its worker
                idle.set_result(None)
        self._idle.clear()
        if not self._over.done():
            self._over.set_result(None)

    async def _drain(self) -> None:
        """Lets calls in flight finish, for a while."""
        if self._workers:
            _, late = await asyncio.wait(set(self._workers), timeout=_GRACE_S)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
