"""Two processes of four devices give the results of one with eight, and stop together."""

import contextlib
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import peers
import pytest

from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.optimizer import OPTIMIZERS

pytestmark = pytest.mark.slow


def finished(processes) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each; no traceback may be seen."""

    def end(process) -> tuple[str, str, int]:
        return (*process.communicate(timeout=120), process.returncode)

    try:
        with ThreadPoolExecutor() as pool:  # one whose pipe is full would hold up the others
            ended = list(pool.map(end, processes))
    finally:
        for process in processes:
            process.kill()
    for out, err, _ in ended:
        assert "Traceback" not in out + err, err
    return [(status, out, err) for out, err, status in ended]


def steps(stdout: str) -> dict[int, dict[str, float]]:
    """The metrics of each step that a process printed."""
    lines = re.findall(r"^step (\d+) (.*)$", stdout, re.MULTILINE)
    return {
        int(number): {k: float(v) for k, v in (pair.split("=") for pair in values.split())}
        for number, values in lines
    }


def assert_equal_but_for_rounding(state, other) -> None:
    """Compares two states after steps of Adam."""
    gradients, expected = state.opt_state[1], other.opt_state[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        *(jax.device_get(gradients), jax.device_get(expected)),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        *(jax.device_get(state.params), jax.device_get(other.params)),
    )


@pytest.fixture(scope="module")
def one():
    """Runs one process of eight devices; returns the run, and state and metrics of each step."""
    run, after = peers.Run(), {}
    state = run.first()
    for number in (1, 2, 3):
        state, metrics = run.step(state, number)
        after[number] = state, metrics
    return run, after


@pytest.fixture(scope="module")
def every_optimizer(tmp_path_factory):
    """Folders of two processes' checkpoints, and what each printed.

    The first holds steps 1 and 2 of an unbroken run, the second step 2 of one resumed from step 1,
    both for each optimizer in a folder of its name.
    """
    unbroken = tmp_path_factory.mktemp("unbroken")
    first = finished(peers.start("each_optimizer", unbroken, 2))
    resumed = tmp_path_factory.mktemp("resumed") / "copy"
    shutil.copytree(unbroken, resumed)
    for name in OPTIMIZERS:
        shutil.rmtree(resumed / name / "2")
    second = finished(peers.start("each_optimizer", resumed, 2))
    assert [status for status, _, _ in first + second] == [0] * 4, first + second
    return (unbroken, [out for _, out, _ in first]), (resumed, [out for _, out, _ in second])


@pytest.fixture(scope="module")
def two(every_optimizer):
    """The checkpoints of two processes after steps 1 and 2 of AdamW, and what each printed."""
    folder, printed = every_optimizer[0]
    return folder / "adamw", [out[: out.index("from 0 to 2")] for out in printed]


def test_two_processes_have_the_loss_and_the_gradients_of_one(one, two):
    _, after = one
    _, printed = two
    assert steps(printed[0]) == steps(printed[1])
    for number, metrics in steps(printed[0]).items():
        assert metrics == pytest.approx(after[number][1], rel=1e-5)
    assert steps(printed[0]).keys() == {1, 2}


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_two_processes_is_read_by_one(one, two, number):
    run, after = one
    checkpoints = Checkpoints(two[0], 9)
    found = checkpoints.restore(number, run.like)
    checkpoints.close()
    assert_equal_but_for_rounding(found, after[number][0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_that_resume_end_with_the_bits_of_an_unbroken_run(every_optimizer, name):
    def end(folder):
        with contextlib.closing(Checkpoints(folder / name, 9)) as checkpoints:
            return checkpoints.restore(2, peers.Run(name).like)

    (unbroken, _), (resumed, printed) = every_optimizer
    assert [out.count("from 1 to 2") for out in printed] == [len(OPTIMIZERS)] * 2
    jax.tree.map(np.testing.assert_array_equal, end(resumed), end(unbroken))


def test_what_one_process_saved_and_only_one_of_two_can_read_costs_both_one_interval(
    one, two, tmp_path
):
    _, after = one
    checkpoints = Checkpoints(tmp_path, 9)
    checkpoints.save(1, after[1][0])
    checkpoints.close()
    shutil.copytree(two[0] / "2", tmp_path / "2")
    own = tmp_path / "2" / "params" / "ocdbt.process_1" / "d"  # that process 0 does not read
    for file in own.iterdir():
        file.write_bytes(file.read_bytes()[:100])

    ended = finished(peers.start("go_on", tmp_path, 3))
    for status, out, err in ended:
        assert status == 0, err
        assert "it is set aside, training goes on from step 1" in out and "from 1 to 3" in out
        for number, metrics in steps(out).items():
            assert metrics == pytest.approx(after[number][1], rel=1e-4)
        assert steps(out).keys() == {2, 3}
    assert sum("another process cannot read step 2" in out for _, out, _ in ended) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "2.damaged", "3"]


def test_sigterm_to_one_of_two_stops_both_at_the_same_step_of_a_resumed_run(tmp_path):
    processes = peers.start("until_stopped", tmp_path)
    for process in processes:
        while process.stdout.readline() not in ("stepping\n", ""):
            pass
    processes[1].send_signal(signal.SIGTERM)
    ended = finished(processes)
    assert [status for status, _, _ in ended] == [75, 75], ended
    (saved,) = (path.name for path in tmp_path.iterdir())
    for _, out, err in ended:
        assert out.count("SIGTERM: saving after this step") == 1
        assert err == f"stopped by SIGTERM; step {saved} is saved\n"


def test_the_death_of_one_ends_the_other_without_a_traceback(tmp_path):
    processes = peers.start("until_stopped", tmp_path)
    for process in processes:
        while process.stdout.readline() not in ("stepping\n", ""):
            pass
    processes[1].kill()
    (status, _, err), _ = finished(processes)
    assert status in (1, -signal.SIGABRT)
    assert "another process has gone" in err or "another task died" in err


def test_folders_that_are_not_shared_are_one_line_on_both(tmp_path):
    for status, _, err in finished(peers.start("apart", tmp_path)):
        assert status == 2
        assert "not all processes see it: set config.train.checkpoints" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("number", "fault", "status"), [(0, "UsageError", 2), (1, "McrError", 1)])
def test_one_that_fails_alone_ends_with_its_own_status_and_the_other_soon(number, fault, status):
    ended = finished(peers.start("fails", number, fault))
    assert (ended[number][0], ended[number][2]) == (status, "it fails\n")
    other, _, err = ended[1 - number]
    assert other in (1, -signal.SIGABRT)
    assert "another process has gone" in err or "another task died" in err or "coordin" in err


def test_all_that_fail_end_with_their_status_and_one_line():
    for status, _, err in finished(peers.start("fails", "-", "UsageError")):
        assert (status, err) == (2, "it fails\n")
