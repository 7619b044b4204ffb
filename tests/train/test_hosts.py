"""A process finds its place among others, or says in one line what keeps it from that."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.train import hosts
from mcr_jax.train.hosts import Place

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "red[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
JOIN = """
import sys
from mcr_jax.errors import McrError
from mcr_jax.train import hosts
try:
    hosts.join()
except McrError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """An environment that names no other process."""
    for name in list(os.environ):
        kinds = ("SLURM_", "TPU_", "MEGASCALE_", "JAX_COORD", "JAX_NUM", "JAX_PROC")
        if name.startswith(kinds) or name.endswith("_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)
    monkeypatch.delenv(hosts.TIMEOUT, raising=False)


@pytest.fixture
def env(monkeypatch):
    """Sets environment variables."""

    def env(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return env


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def job(address="10.0.0.1:1234", count="2", number="1"):
    given = {hosts.ADDRESS: address, hosts.COUNT: count, hosts.NUMBER: number}
    return {name: value for name, value in given.items() if value is not None}


def joining(**env) -> str:
    """The one line that a process ends with which cannot join."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "JAX_PLATFORMS": "cpu", hosts.TIMEOUT: "2", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_process_that_nobody_tells_of_others_is_alone(env):
    hosts.join()
    assert not jax.distributed.is_initialized()
    assert hosts.processes() == 1 and hosts.writes()
    hosts.meet("nobody")
    hosts.same({"data": "this"})
    assert hosts.agreed(7) == 7
    assert hosts.all_of(True) and not hosts.all_of(False)
    env(**job(count="1", number="0"))
    hosts.join()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (job(address=None), r"^JAX_COORDINATOR_ADDRESS missing beside JAX_NUM_PROCESSES"),
        (job(count=None, number=None), r"^JAX_NUM_PROCESSES and JAX_PROCESS_ID missing beside"),
        (job(address="10.0.0.1"), r"^JAX_COORDINATOR_ADDRESS=10\.0\.0\.1: it is HOST:PORT"),
        (job(count="two"), r"^JAX_NUM_PROCESSES=two: it is a number$"),
        (job(number="-1"), r"^JAX_PROCESS_ID=-1: it is a number$"),
        (job(number="2"), r"^JAX_PROCESS_ID=2: with JAX_NUM_PROCESSES=2 they are 0 to 1$"),
        ({**job(), hosts.TIMEOUT: "soon"}, r"^MCR_PEER_TIMEOUT=soon: seconds to wait"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_is_one_line(env, given, message):
    env(**given)
    with pytest.raises(UsageError, match=message) as refused:
        hosts.join()
    assert "\n" not in str(refused.value)


def test_process_0_says_that_the_others_have_not_come(free_port):
    line = joining(**job(address=f"127.0.0.1:{free_port}", count="3", number="0"))
    assert re.match(rf"process 0 of 3 at 127\.0\.0\.1:{free_port}: not all 3 have come", line)
    assert "JAX_PROCESS_ID 0 to 2" in line


def test_another_process_says_that_nobody_is_at_the_address(free_port):
    line = joining(**job(address=f"127.0.0.1:{free_port}"))
    assert re.match(rf"process 1 of 2 at 127\.0\.0\.1:{free_port}: nothing answers there", line)
    assert "Connection refused" in line


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        line = joining(**job(address=f"127.0.0.1:{port}", number="0"))
    assert line.startswith(f"process 0 of 2 cannot listen on port {port}: Address already in use")


def test_a_slurm_step_tells_the_place_and_the_accelerator(env):
    env(**SLURM)
    place = hosts._detected()
    assert re.fullmatch(r"red07:\d+", place.address)
    assert place[1:] == (16, 11, [3])
    env(SLURM_NTASKS="2", SLURM_PROCID="1", SLURM_LOCALID="0")  # one task on each node
    assert hosts._detected() == Place(place.address, 2, 1, None)
    env(SLURM_NTASKS="1", SLURM_PROCID="0")
    assert hosts._detected() is None


@pytest.mark.parametrize(
    ("shown", "slurm", "taken"),
    [
        ("0,1,2,3,4,5,6,7", {}, [3]),  # all tasks of the node see the same eight
        ("0", {}, None),  # --gpu-bind, one GPU each: its number is 0 for every task
        ("GPU-8a7b", {}, None),
        ("0,1", {}, None),  # fewer than tasks, so they are its own
        ("0,1,2,3,4,5,6,7", {"SLURM_GPUS_PER_TASK": "8"}, None),
        ("0,1,2,3,4,5,6,7", {"SLURM_TRES_PER_TASK": "cpu:8,gres/gpu:8"}, None),
        ("0,1,2,3,4,5,6,7", {"SLURM_TRES_PER_TASK": "cpu:8"}, [3]),
        ("0,1,2,3", {"SLURM_STEP_TASKS_PER_NODE": "2(x8)", "SLURM_LOCALID": "1"}, [2, 3]),
        ("0,1,2,3", {"SLURM_STEP_TASKS_PER_NODE": "1,15", "SLURM_NODEID": "0"}, None),
    ],
)
def test_a_slurm_task_takes_what_is_its_own_of_what_it_sees(env, shown, slurm, taken):
    env(**SLURM | slurm, CUDA_VISIBLE_DEVICES=shown)
    assert hosts._detected().local_devices == taken


def test_a_slurm_allocation_without_a_step_is_one_process(env):
    env(**{name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"})
    assert hosts._detected() is None


def test_workers_of_a_tpu_slice_tell_the_place(env, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    env(TPU_WORKER_HOSTNAMES="localhost,elsewhere", TPU_WORKER_ID="1")
    env(MEGASCALE_NUM_SLICES="1", MEGASCALE_SLICE_ID="0", MEGASCALE_COORDINATOR_ADDRESS="localhost")
    assert hosts._detected() == Place("localhost:8482", 2, 1, None)
    env(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    assert hosts._detected() is None


def test_sigterm_stops_at_the_next_step_says_so_and_is_deadly_again_afterwards(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with hosts.listening() as stop:
        assert not stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(2)
    assert capsys.readouterr().out == "  SIGTERM: saving after this step\n"
    assert signal.getsignal(signal.SIGTERM) == before
    with hosts.listening() as stop:
        assert not stop(1)


def test_in_another_thread_nobody_listens():
    before, told = signal.getsignal(signal.SIGTERM), []

    def listen():
        with hosts.listening() as stop:
            told.append((stop(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert told == [(False, before)]


def test_together_lets_the_faults_of_one_process_alone_pass():
    with pytest.raises(McrError, match="mine"), hosts.together():
        raise McrError("mine")
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"), hosts.together():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: of this process")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def as_a_fault_of_its_own():
    try:
        terminate()
    except McrError as error:
        raise McrError("the case cannot be read") from error


@pytest.mark.parametrize("work", [terminate, as_a_fault_of_its_own])
def test_sigterm_before_the_steps_stops_and_is_deadly_again_afterwards(work):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM while no step"), hosts.together():
        work()
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_that_was_swallowed_before_the_steps_is_heard_after_the_first():
    with hosts.together():
        with contextlib.suppress(McrError):
            terminate()
        with hosts.listening() as stop:
            assert stop(1)


def test_sigusr1_is_nothing_until_someone_listens():
    before = signal.getsignal(signal.SIGUSR1)
    with hosts.together():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) == before


def test_out_of_memory_is_one_line_that_says_what_to_do():
    what = r"^out of memory \(RESOURCE_EXHAUSTED.*config\.train\.accumulate.*, LoRA$"
    with pytest.raises(McrError, match=what), hosts.together():
        jax.jit(lambda: jax.numpy.zeros(1 << 46))().block_until_ready()
