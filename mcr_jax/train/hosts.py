"""Several processes as one: how they join, who writes, and how all stop at the same step.

What happens when one is missing or dies (jax 0.10, CPU with gloo): one that does not come within
the time is told in one line by `join` and `meet`. One that dies in the middle fails the collective
that the others are in, which `together` tells in one line; or jax's coordination service ends them
with SIGABRT and a log that names it: at once if it was process 0, else when its heartbeats are
missed. Python cannot prevent that. What was saved stays, and the same command on all goes on.
One that fails alone leaves without waiting for the others, which then are told the same way.
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
# Which GPUs a process sees: NVIDIA's, AMD's.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
TIMEOUT = "MCR_PEER_TIMEOUT"  # seconds that one process waits for the others; 300 unless set
_HEARTBEATS = 100  # seconds without one after which a process counts as dead; jax's own default
_GOODBYE = 30  # seconds between the first and the last to end
_PARTING = 5  # seconds that a process which fails waits for the others to fail as well
_FULL = ("RESOURCE_EXHAUSTED", "Out of memory")  # how XLA says that a device's memory is
_GONE = ("Gloo", "NCCL", "UNAVAILABLE", "Connection reset", "Socket closed")  # how jax says so


_ASKED = threading.Event()  # SIGTERM has come to this process, which is alone


class Place(NamedTuple):
    """Where a process stands among the others.

    Attributes:
      address: HOST:PORT at which process 0 listens.
      count: how many processes there are.
      number: of this one, from 0.
      local_devices: the accelerators of this host that it takes; None is all that it sees.
    """

    address: str
    count: int
    number: int
    local_devices: list[int] | None = None


def join() -> None:
    """Makes this process one of several, where the environment says so; before jax is used.

    JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say so,
    or what a TPU VM and a Slurm step tell jax. Otherwise nothing happens.

    Raises:
      UsageError: of the three variables some are missing or wrong.
      McrError: the others have not come within MCR_PEER_TIMEOUT seconds.
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
                cluster_detection_method="deactivate",  # all that it would find is in `place`
                initialization_timeout=seconds + 60,  # at this jax aborts the process
                heartbeat_timeout_seconds=min(_HEARTBEATS, seconds),
                shutdown_timeout_seconds=_GOODBYE,
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
    """Joins the others for the block, and leaves when all have come to its end.

    SIGTERM ends the block of one process alone wherever it is; in that of several it is heard by
    `listening` only. SIGUSR1 is nothing until someone listens to it.

    Raises:
      Stopped: SIGTERM came while nobody listened.
      McrError: as `join`; or another process has gone in the middle; or a device is out of memory.
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
            if any(sign in line for sign in _FULL):
                fault = McrError(
                    f"out of memory ({line}); `mcr train --plan='COUNT x KIND'` tells what fits: "
                    "config.train.accumulate, config.train.remat=full, config.mesh, LoRA"
                )
                _part_at_exit(fault)
            elif jax.distributed.is_initialized() and any(sign in line for sign in _GONE):
                fault = McrError(
                    f"process {jax.process_index()} of {processes()}: another process has gone: "
                    "see what the others printed last; the same command on all of them goes on "
                    f"from the newest checkpoint ({line})"
                )
                atexit.register(_leave)
            else:
                raise
            raise fault from error


def timeout() -> int:
    """How many seconds one process waits for the others. Raises UsageError if it is no number."""
    given = os.environ.get(TIMEOUT, "300")
    if not given.isdecimal() or int(given) == 0:
        raise UsageError(f"{TIMEOUT}={given}: seconds to wait for the other processes, at least 1")
    return int(given)


def processes() -> int:
    """How many there are."""
    return jax.process_count()


def writes() -> bool:
    """Whether this is process 0, the one that writes what all have in common."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Returns when all processes have come here.

    Raises:
      McrError: some have not within MCR_PEER_TIMEOUT seconds.
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
    """Process 0's `value`, on all of them. All must call it, and none may be missing."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_of(fact: bool) -> bool:
    """Whether `fact` holds on every process. All must call it, and none may be missing."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(fact))))


def same(facts: Mapping[str, str]) -> None:
    """Checks that all processes work from the same `facts`; all must call it with the same names.

    Raises:
      UsageError: on one of them a fact is another, on all of them.
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
    """Yields stop(step), to be called by all processes once after each step.

    It is True after SIGTERM has reached any of them, on all of them at the same step. Several
    processes agree in the background, through jax's preemption service and without the devices; it
    takes a second and a step or two.
    """
    if processes() > 1:  # jax's service took the signal over when they joined
        # Calls are counted, not steps: where the signal comes before the first call, the processes
        # agree on number 1, which a resumed run's steps are beyond.
        calls = itertools.count(1)
        yield _told_once(lambda step: multihost_utils.reached_preemption_sync_point(next(calls)))
        return
    if not in_main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _ASKED.set())
    try:
        yield _told_once(lambda step: _ASKED.is_set())
    finally:
        signal.signal(signal.SIGTERM, before)
        _ASKED.clear()


def _told_once(stop: Callable[[int], bool]) -> Callable[[int], bool]:
    """`stop`, which says so when it first is True: a signal's handler must not print."""
    told = False

    def telling(step: int) -> bool:
        nonlocal told
        asked = stop(step)
        if asked and not told:
            told = True
            console.say("  SIGTERM: saving after this step")
        return asked

    return telling


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """What signals do in the block while nobody listens: SIGUSR1 nothing, SIGTERM as `together`."""
    if not in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not jax.distributed.is_initialized():  # else jax's service took SIGTERM over
        told = "stopped by SIGTERM while no step was under way; call again to go on"
        alone = stoppable(told, _ASKED)
    try:
        with alone:
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _given(environment: Mapping[str, str]) -> Place | None:
    """What the three variables say; None without any of them."""
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
    """What a Slurm step or a TPU VM tells jax; None elsewhere."""
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
        except (OSError, RuntimeError) as error:  # the TPU VM's metadata are behind a web address
            raise McrError(
                f"{cluster.name}: cannot tell the processes: {str(error).splitlines()[0]}; set "
                f"{ADDRESS}, {COUNT} and {NUMBER} instead"
            ) from error
        if cluster is SlurmCluster:
            return place._replace(local_devices=_slurm_share(os.environ))
        return place
    return None


def _slurm_share(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs that a task of a Slurm step takes, of those it sees; None for all of them.

    Slurm shows a task its own GPUs only (`--gpus-per-task`, `--gpu-bind`), or all tasks of a node
    the same ones, which they then divide.
    """
    local, tasks = int(environment["SLURM_LOCALID"]), _tasks_on_node(environment)
    own = "SLURM_GPUS_PER_TASK" in environment
    own = own or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")  # or it is of CPUs alone
    if tasks == 1 or own:
        return None
    shown = next((environment[name] for name in _VISIBLE if name in environment), None)
    if shown is None:
        return [local]
    seen = len([device for device in shown.split(",") if device.strip()])
    if seen < tasks:  # they cannot be the same for all
        return None
    share = seen // tasks
    return list(range(local * share, (local + 1) * share))


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """How many tasks of the step run on this node, by Slurm's list such as "8(x2),4"."""
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
    """Raises McrError if another process listens on the port; jax would end in a segfault."""
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
    """Why some processes may not have come."""
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
    """Where `error` may be of this process alone, ends it without the others."""
    if jax.distributed.is_initialized() and not isinstance(error, Stopped):
        atexit.register(_part, 2 if isinstance(error, UsageError) else 1)


def _part(status: int) -> None:
    """Says goodbye with the others where all fail; else leaves, as they do not come."""
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key="mcr_fault", timeout_ms=_PARTING * 1000)
    except jax.errors.JaxRuntimeError:
        _leave(status)


def _leave(status: int = 1) -> None:
    """Ends the process without jax's goodbye, which waits for those that never came."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
