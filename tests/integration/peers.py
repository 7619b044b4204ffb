"""Actions of the multi-process tests: `python peers.py DEED ARGUMENT...`.

`start` runs it as processes of four virtual CPU devices that form one job, like launch scripts.
Tests also call the actions in their own process, with eight devices.
"""

import itertools
import os
import socket
import subprocess
import sys

import jax
import numpy as np

from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model.abstract import abstract_decoder, initial_params
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, shardings
from mcr_jax.train import hosts
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.mesh import batch_sharding, put, training_mesh
from mcr_jax.train.optimizer import OPTIMIZERS, optimizer
from mcr_jax.train.step import State, init_state, train_step

SHAPE = DecoderConfig(
    vocab_size=8192,  # so large that each process's part of a checkpoint is a file of its own
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=32,
    embedding_scale=4.0,
    tied=False,
)
ROWS, LENGTH = 8, 12
OPTIM = {"learning_rate": 1e-2, "warmup_steps": 0, "steps": 8, "weight_decay": 0.1}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}


class Run:
    """A state on the mesh of all devices of all processes, and its step."""

    def __init__(self, name: str = "adamw"):
        """`name` is of the optimizer."""
        self.mesh = training_mesh(1, 4, 2, rows=ROWS)
        graph, shapes = abstract_decoder(SHAPE)
        tx, schedule = optimizer(**OPTIM, name=name)
        whole = jax.eval_shape(lambda p: init_state(p, tx), shapes)
        self.placed = shardings(self.mesh, whole)
        self.like = abstract(whole, self.placed)
        self.first = jax.jit(
            lambda: init_state(initial_params(SHAPE, 0), tx), out_shardings=self.placed
        )
        self._step = jax.jit(
            train_step(graph, tx, schedule),
            in_shardings=(self.placed, batch_sharding(self.mesh)),
            out_shardings=(self.placed, None),
        )

    def step(self, state, number: int):
        """The state after step `number`, and its metrics."""
        with jax.transfer_guard("disallow"):
            state, metrics = self._step(state, put(batch(number), self.mesh))
        return state, {name: float(value) for name, value in metrics.items()}


def batch(number: int) -> dict[str, np.ndarray]:
    """Rows of ragged segments: the same on all processes."""
    rng = np.random.default_rng(number)
    made = {
        name: rng.integers(0, SHAPE.vocab_size, (ROWS, LENGTH), np.int32)
        for name in ("tokens", "targets")
    }
    made["segment_ids"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH), np.int32))
    made["positions"] = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    made["weights"] = rng.integers(0, 2, (ROWS, LENGTH)).astype(np.float32)
    return made


def go_on(folder: str, until: str, name: str = "adamw") -> None:
    """Trains from the newest checkpoint to step `until` and saves each step; prints the metrics."""
    run, checkpoints = Run(name), Checkpoints(folder, 9)
    state, done = checkpoints.restore_newest(run.like)
    state = run.first() if state is None else state
    for number in range(done + 1, int(until) + 1):
        state, metrics = run.step(state, number)
        checkpoints.save(number, state, val_loss=metrics["loss"])
        print(f"step {number}", *(f"{name}={value:.9g}" for name, value in metrics.items()))
    checkpoints.close()
    print(f"from {done} to {until}, best {checkpoints.best}")


def each_optimizer(folder: str, until: str) -> None:
    """Does `go_on` with every optimizer, in FOLDER/NAME."""
    for name in OPTIMIZERS:
        go_on(f"{folder}/{name}", until, name)


def until_stopped(folder: str) -> None:
    """Sums over all processes and saves each step like a resumed run, until SIGTERM.

    Prints "stepping" once the first is saved.
    """
    checkpoints, mesh = Checkpoints(folder, 1), training_mesh(1, 8, 1, rows=8)
    rows = put({"ones": np.ones((8, 2), np.float32)}, mesh)["ones"]
    add = jax.jit(lambda total, rows: total + rows.sum(), out_shardings=batch_sharding(mesh))
    with hosts.listening() as stop:
        total = rows
        for number in itertools.count(1000):
            total = add(total, rows)
            stopping = stop(number)
            state = State(step=np.int32(number), params={"total": total}, opt_state={})
            checkpoints.save(number, state)
            if number == 1000:
                print("stepping", flush=True)
            if stopping:
                checkpoints.close()
                raise Stopped(f"stopped by SIGTERM; step {number} is saved")


def apart(folder: str) -> None:
    """Opens checkpoints in a folder of this process alone."""
    Checkpoints(f"{folder}/{jax.process_index()}", 2)


def fails(number: str, fault: str) -> None:
    """Process `number` alone fails, while the others wait for it; "-" is all of them."""
    if number in ("-", str(jax.process_index())):
        raise {"McrError": McrError, "UsageError": UsageError}[fault]("it fails")
    hosts.agreed(1)


def start(deed: str, *arguments: object, count: int = 2, **env: str) -> list[subprocess.Popen[str]]:
    """Starts `count` processes that do a deed together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start_one(deed, *arguments, address=address, count=count, number=number, **env)
        for number in range(count)
    ]


def start_one(
    deed: str, *arguments: object, address: str, count: int, number: int, **env: str
) -> subprocess.Popen[str]:
    """Starts process `number` of `count`."""
    given = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        hosts.TIMEOUT: "100",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return subprocess.Popen(
        [sys.executable, __file__, deed, *map(str, arguments)],
        env={**os.environ, **given, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(deed: str, *arguments: str) -> int:
    """Joins the others and does the deed; returns the exit status that `mcr` would."""
    deeds = {made.__name__: made for made in (go_on, each_optimizer, until_stopped, apart, fails)}
    hosts.HEARTBEAT_TIMEOUT_S = 20  # a test waits until a death is noticed
    try:
        with hosts.together():
            deeds[deed](*arguments)
    except McrError as error:
        print(error, file=sys.stderr)
        return 75 if isinstance(error, Stopped) else 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
