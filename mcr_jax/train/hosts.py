"""Multi-host set-up, primary-process writes, and a coordinated stop at one step.

Failures (jax 0.10, CPU with gloo): if a process does not arrive in time, `join` and `meet` raise
one line. If a process dies in the middle, the collective of the others fails and `together` raises
one line; or jax's coordination service ends them with SIGABRT and a log that names the process, at
once if it was process 0, else after missed heartbeats. Python cannot prevent that. Checkpoints
stay, and the same command on all processes resumes. A process that fails alone exits without
waiting for the others, which then fail like this.
"""

import atexit
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mcr_jax import console
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.sigterm import in_main_thread, stoppable

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Variables of the GPUs that a process sees: NVIDIA's, AMD's.
_VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
TIMEOUT = "MCR_PEER_TIMEOUT"  # variable: seconds that a process waits for the others; default 300
HEARTBEAT_TIMEOUT_S = 100  # a process without a heartbeat for so long counts as dead; jax's default
EXIT_BARRIER_S = 30  # between the exits of the first and the last process
FAILURE_BARRIER_S = 5  # in which all processes must fail to end together
OUT_OF_MEMORY_TEXT = ("RESOURCE_EXHAUSTED", "Out of memory")  # in errors of XLA
PEER_LOST_TEXT = ("Gloo", "NCCL", "UNAVAILABLE", "Connection reset", "Socket closed")  # of jax

_SIGTERM = threading.Event()  # set when a single process received SIGTERM


class Place(NamedTuple):
    """Place of a process in a multi-host run.

    Attributes:
      address: HOST:PORT at which process 0 listens.
      count: number of processes.
      number: of this one, from 0.
      local_devices: ids of the accelerators of this host that it uses; None for all visible ones.
    """

    address: str
    count: int
    number: int
    local_devices: list[int] | None = None


def join() -> None:
    """Joins a multi-host run if the environment describes one; call it before jax is used.

    The description is JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or that of a TPU VM or a Slurm step.

    Raises:
      UsageError: some of the three variables are missing or wrong.
      McrError: the other processes do not join within MCR_PEER_TIMEOUT seconds.
    """
    place = _given(os.environ) or _detected()
    if place is None or place.count == 1 or jax.distributed.is_initialized():
        return
    if place.number == 0:
        _check_free(place)
    seconds = timeout()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    faults: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                *place,
                cluster_detection_method="deactivate",  # `place` has it all
                initialization_timeout=seconds + 60,  # then jax aborts the process
                heartbeat_timeout_seconds=min(HEARTBEAT_TIMEOUT_S, seconds),
                shutdown_timeout_seconds=EXIT_BARRIER_S,
            )
        except (RuntimeError, ValueError) as error:
            faults.append(error)

    waiting = threading.Thread(target=initialize, daemon=True)
    waiting.start()
    waiting.join(seconds)
    if waiting.is_alive() or faults:
        atexit.register(_leave)
        why = str(faults[0]).splitlines()[0] if faults else _missing(place)
        raise McrError(f"process {place.number} of {place.count} at {place.address}: {why}")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the other processes for the block; leaves when all have reached its end.

    SIGTERM ends the block of a single process anywhere; in a multi-host run only `listening`
    handles it. SIGUSR1 is ignored until a handler is installed.

    Raises:
      Stopped: SIGTERM was received outside of `listening`.
      McrError: as `join`; another process was lost; or a device is out of memory.
    """
    join()
    with _signals():
        try:
            yield
            meet("end")
        except McrError as error:
            _part_at_exit(error)
            raise
        except jax.errors.JaxRuntimeError as error:
            line = str(error).splitlines()[0][:200]
            if any(text in line for text in OUT_OF_MEMORY_TEXT):
                fault = McrError(
                    f"out of memory ({line}); `mcr train --plan='COUNT x KIND'` shows what fits: "
                    "config.train.accumulate, config.train.remat=full, config.mesh, LoRA"
                )
                _part_at_exit(fault)
            elif jax.distributed.is_initialized() and any(text in line for text in PEER_LOST_TEXT):
                fault = McrError(
                    f"process {jax.process_index()} of {processes()}: another process has gone: "
                    "see what the others printed last; the same command on all of them resumes "
                    f"from the newest checkpoint ({line})"
                )
                atexit.register(_leave)
            else:
                raise
            raise fault from error


def timeout() -> int:
    """Reads MCR_PEER_TIMEOUT, in seconds. Raises UsageError unless it is a number above 0."""
    given = os.environ.get(TIMEOUT, "300")
    if not given.isdecimal() or int(given) == 0:
        raise UsageError(f"{TIMEOUT}={given}: seconds to wait for the other processes, at least 1")
    return int(given)


def processes() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def writes() -> bool:
    """Returns whether this is process 0, which writes the common files."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Barrier of all processes.

    Raises:
      McrError: not all reach it within MCR_PEER_TIMEOUT seconds.
    """
    if processes() == 1:
        return
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key=f"mcr_{name}", timeout_ms=timeout() * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise McrError(
            f"process {jax.process_index()} of {processes()}: the others have not come to {name!r} "
            f"within {timeout()} s; see what they printed last ({TIMEOUT} sets the seconds)"
        ) from error


def agreed(value: int) -> int:
    """Returns process 0's `value` on all processes. A collective."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_of(fact: bool) -> bool:
    """Returns whether `fact` is true on every process. A collective."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(fact))))


def same(facts: Mapping[str, str]) -> None:
    """Checks that `facts`, with the same names on all processes, are equal. A collective.

    Raises:
      UsageError: a fact differs on one of them; raised on all.
    """
    if processes() == 1:
        return
    codes = [np.frombuffer(text.encode()[:64].ljust(64), np.uint8) for text in facts.values()]
    found = multihost_utils.process_allgather(np.stack(codes))  # [process, fact, 64]
    for name, column in zip(facts, found.swapaxes(0, 1), strict=True):
        if others := np.flatnonzero((column != column[0]).any(axis=-1)).tolist():
            raise UsageError(f"process {others[0]} has another {name} than process 0")


@contextlib.contextmanager
def listening() -> Iterator[Callable[[int], bool]]:
    """Yields stop(step), which all processes call once after each step.

    After SIGTERM to any process it returns True on all of them at the same step. In a multi-host
    run they agree through jax's preemption service, without the devices, within a second and a
    step or two.
    """
    if processes() > 1:  # jax's service installed its handler when they joined
        # It counts calls, not steps: after a signal before the first call the processes agree on
        # number 1, and a resumed run's steps are beyond it.
        calls = itertools.count(1)
        yield _printing(lambda: multihost_utils.reached_preemption_sync_point(next(calls)))
        return
    if not in_main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _SIGTERM.set())
    try:
        yield _printing(_SIGTERM.is_set)
    finally:
        signal.signal(signal.SIGTERM, before)
        _SIGTERM.clear()


def _printing(signalled: Callable[[], bool]) -> Callable[[int], bool]:
    """Returns stop(step), which prints the line that a signal's handler must not print."""

    def stop(step: int) -> bool:
        if stopping := signalled():
            console.say("  SIGTERM: saving after this step")
        return stopping

    return stop


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Handles signals as `together` says."""
    if not in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not jax.distributed.is_initialized():  # else jax's service handles SIGTERM
        alone = stoppable(
            "stopped by SIGTERM while no step was under way; call again to go on", _SIGTERM
        )
    try:
        with alone:
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _given(environment: Mapping[str, str]) -> Place | None:
    """Reads the three variables; None without any of them."""
    names = (ADDRESS, COUNT, NUMBER)
    found = {name: environment[name] for name in names if environment.get(name)}
    if not found:
        return None
    if missing := [name for name in names if name not in found]:
        raise UsageError(
            f"{' and '.join(missing)} missing beside {', '.join(found)}: several processes need "
            "all three, one needs none"
        )
    host, _, port = found[ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{ADDRESS}={found[ADDRESS]}: it is HOST:PORT of process 0")
    for name in (COUNT, NUMBER):
        if not found[name].isdecimal():
            raise UsageError(f"{name}={found[name]}: it is a number")
    place = Place(found[ADDRESS], int(found[COUNT]), int(found[NUMBER]))
    if place.number >= place.count:
        raise UsageError(
            f"{NUMBER}={place.number}: with {COUNT}={place.count} they are 0 to {place.count - 1}"
        )
    return place


def _detected() -> Place | None:
    """Reads the place from a Slurm step or a TPU VM, as jax does; None elsewhere."""
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, SlurmCluster

    for cluster in (SlurmCluster, GkeTpuCluster, GceTpuCluster):
        try:
            if not cluster.is_env_present():
                continue
            count = cluster.get_process_count()
            if count == 1:
                return None
            address = cluster.get_coordinator_address(
                timeout_secs=timeout(), override_coordinator_port=None
            )
            place = Place(address, count, cluster.get_process_id())
        except (OSError, RuntimeError) as error:  # a TPU VM's metadata server
            raise McrError(
                f"{cluster.name}: cannot find the processes: {str(error).splitlines()[0]}; set "
                f"{ADDRESS}, {COUNT} and {NUMBER} instead"
            ) from error
        if cluster is SlurmCluster:
            return place._replace(local_devices=_slurm_share(os.environ))
        return place
    return None


def _slurm_share(environment: Mapping[str, str]) -> list[int] | None:
    """Returns the GPUs that a task of a Slurm step uses, of those it sees; None for all of them.

    Slurm shows a task its own GPUs only (`--gpus-per-task`, `--gpu-bind`), or all tasks of a node
    the same ones, which they divide here.
    """
    local, tasks = int(environment["SLURM_LOCALID"]), _tasks_on_node(environment)
    own = "SLURM_GPUS_PER_TASK" in environment
    own = own or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")  # it may count CPUs only
    if tasks == 1 or own:
        return None
    shown = next((environment[name] for name in _VISIBLE_GPUS if name in environment), None)
    if shown is None:
        return [local]
    seen = len([device for device in shown.split(",") if device.strip()])
    if seen < tasks:  # then tasks see different GPUs
        return None
    share = seen // tasks
    return list(range(local * share, (local + 1) * share))


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Counts the tasks of the step on this node, from Slurm's list such as "8(x2),4"."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [int(match[1])] * int(match[2] or 1)
    node = environment.get("SLURM_NODEID", "0")
    if node.isdecimal() and int(node) < len(counts):
        return counts[int(node)]
    nodes = environment.get("SLURM_STEP_NUM_NODES", "1")
    return -(-int(environment["SLURM_NTASKS"]) // int(nodes))


def _check_free(place: Place) -> None:
    """Raises McrError if the port is in use, where jax would end in a segmentation fault."""
    port, both = int(place.address.rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise McrError(
            f"process 0 of {place.count} cannot listen on port {port}: {os.strerror(error.errno)}; "
            f"set another in {ADDRESS}, the same for all"
        ) from error


def _missing(place: Place) -> str:
    """Explains a failed `join`."""
    host, _, port = place.address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return (
            f"nothing answers there within {timeout()} s ({error.strerror or error}): see that "
            f"process 0 runs there and that this host can reach it, or set {ADDRESS} right"
        )
    return (
        f"not all {place.count} have come within {timeout()} s: see that each was started, with "
        f"the same {ADDRESS} and {COUNT}, and {NUMBER} 0 to {place.count - 1} ({TIMEOUT} sets the "
        "seconds)"
    )


def _part_at_exit(error: McrError) -> None:
    """At exit, ends this process without the others if `error` may be its own only."""
    if jax.distributed.is_initialized() and not isinstance(error, Stopped):
        atexit.register(_part, 2 if isinstance(error, UsageError) else 1)


def _part(status: int) -> None:
    """Exits together with the others if all fail; otherwise at once, without the exit barrier."""
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key="mcr_fault", timeout_ms=FAILURE_BARRIER_S * 1000)
    except jax.errors.JaxRuntimeError:
        _leave(status)


def _leave(status: int = 1) -> None:
    """Ends the process without jax's exit barrier, which waits for processes that never joined."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
