"""Rows are written to the ledger even if a signal ends the work."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mcr_jax.errors import Stopped
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey
from mcr_jax.generate.recorder import Recorder
from mcr_jax.sigterm import stoppable

ROW = RowKey(stage="diagnosis", case="c", model="m", sample=0, judge="gemini:x")


class Interrupted(Ledger):
    """Ledger that gets SIGTERM while it writes, and waits for a close that comes too early."""

    def __init__(self, path):
        super().__init__(path)
        self.closed = threading.Event()

    def write_all(self, groups):
        os.kill(os.getpid(), signal.SIGTERM)
        self.closed.wait(0.2)
        super().write_all(groups)

    def close(self):
        super().close()
        self.closed.set()


def test_a_signal_while_it_starts_keeps_no_process_from_ending(tmp_path):
    """A signal between the start of the thread and the block leaves the thread without an end."""
    code = (
        "import sys\nfrom mcr_jax.generate.ledger import Ledger\n"
        "from mcr_jax.generate.recorder import Recorder\n"
        "with Ledger(sys.argv[1]) as ledger:\n"
        "    Recorder(ledger, print).__enter__()\n    sys.exit(75)"
    )
    command = [sys.executable, "-c", code, tmp_path / "l.sqlite"]
    assert subprocess.run(command, timeout=60).returncode == 75


@pytest.mark.promise("records their replies and exits with 75")
def test_sigterm_while_the_last_rows_are_written_loses_none(tmp_path):
    path = tmp_path / "l.sqlite"
    attempt = Attempt(row=ROW, digest="d", attempt=1, outcome=Outcome.OK)
    with (
        pytest.raises(Stopped, match="stopped"),
        stoppable("stopped"),
        Interrupted(path) as ledger,
        Recorder(ledger, lambda settled: None) as recorder,
    ):
        recorder.put([attempt], 1)
    with Ledger(path, readonly=True) as ledger:
        assert ledger.count() == 1
