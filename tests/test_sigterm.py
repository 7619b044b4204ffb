"""SIGTERM ends a block of work with one line; its handler is restored afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from mcr_jax.cli import main as cli
from mcr_jax.errors import McrError, Stopped
from mcr_jax.sigterm import stoppable


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def as_a_fault_of_its_own():
    try:
        terminate()
    except McrError as error:
        raise ValueError("the row cannot be read") from error


@pytest.mark.parametrize("work", [terminate, as_a_fault_of_its_own])
def test_sigterm_ends_the_block_and_is_deadly_again_afterwards(work):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="all of it is kept"), stoppable("all of it is kept"):
        work()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_fault_without_sigterm_stays_what_it_is():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="mine"), stoppable("stopped"):
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_that_was_swallowed_is_told_to_what_goes_on_and_forgotten_by_the_next_block():
    received = threading.Event()
    with stoppable("stopped", received):
        with contextlib.suppress(McrError):
            terminate()
        assert received.is_set()
    with pytest.raises(ValueError, match="later"), stoppable("stopped", received):
        raise ValueError("later")
    assert not received.is_set()


def test_a_signal_in_a_callback_whose_exceptions_are_ignored_ends_the_block_all_the_same():
    class Callback:
        def __del__(self):
            terminate()

    before = sys.unraisablehook
    with pytest.raises(Stopped, match="kept"), stoppable("kept"):
        Callback()
        threading.Event().wait(timeout=30)
    assert sys.unraisablehook is before


def test_a_signal_that_was_ignored_just_before_the_end_of_the_block_is_not_lost():
    class Callback:
        def __del__(self):
            terminate()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="kept"), stoppable("kept"):
        Callback()
    assert signal.getsignal(signal.SIGTERM) == before


def test_between_two_stages_of_a_command_it_has_the_same_status(monkeypatch, capsys):
    monkeypatch.setattr("mcr_jax.cli.configs.main", lambda argv: terminate())
    assert cli.main(["configs"]) == 75
    assert capsys.readouterr().err == (
        "mcr configs: stopped by SIGTERM; the same command goes on from here\n"
    )


def test_in_another_thread_the_signal_is_left_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with stoppable("stopped"):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("status", [0, 75])
def test_a_sigterm_while_the_process_ends_changes_no_status(status):
    code = (
        "import atexit, os, signal\nfrom mcr_jax.cli import main as cli\n"
        f"cli.main = lambda argv: {status}\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\ncli.entry()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == status
