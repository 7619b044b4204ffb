"""Kills every stage at random moments and compares the results with an uninterrupted run.

    python tests/integration/kills.py [--kills=4] [--seed=0] [--stages=train,judge]

Each stage of a tiny experiment runs once to its end. Then, from the same start, it is killed (-9)
twice at moments spread over its duration and called again until it is done; its artifacts must
equal those of the uninterrupted run. Prints one line per stage; exit status 1 if any differs. The
judge is a Gemini on loopback, so that kills hit calls in flight.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet
from processes import TIMES, TINY, read, said

COMMANDS = {
    "build": ("build",),
    "stitch": ("stitch", "--config.stitch.judge=gemini"),
    "train": ("train",),
    "sample": ("sample",),
    "judge": ("judge", "--config.judge.name=gemini"),
    "report": ("eval", "--config.judge.name=gemini"),  # all is judged: it scores and reports
}
KILLS_PER_RUN = 2
SECONDS = 300  # after which a stage counts as hanging
REPLY_S = 0.05  # what a call to the judge takes


class Trial(NamedTuple):
    """A stage that was killed and called again: at which seconds, and what then differs."""

    kills: tuple[float, ...]
    differences: tuple[str, ...]


def main() -> int:
    """Runs all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=4, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(COMMANDS))
    flags = parser.parse_args()
    rng, bad, total = random.Random(flags.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder, judge() as service:
        for stage, trials in run(pathlib.Path(folder), service, flags.kills, rng):
            if stage not in flags.stages.split(","):
                continue
            kills = [f"{at:.2f}" for trial in trials for at in trial.kills]
            differences = [line for trial in trials for line in trial.differences]
            total, bad = total + len(kills), bad + bool(differences)
            print(f"{stage:7} {len(kills)} kills at {', '.join(kills)} s: ", end="")
            print("; ".join(differences) or "equal to an uninterrupted run", flush=True)
    print(f"{total} kills, {bad} stages differ")
    return bool(bad)


def run(
    folder: pathlib.Path, service: Mapping[str, str], kills: int, rng: random.Random
) -> Iterator[tuple[str, list[Trial]]]:
    """Each stage with its trials; leaves the finished experiment behind in folder/whole."""
    whole, start = folder / "whole", folder / "start"
    whole.mkdir()
    env = environment(folder) | service
    for stage, command in COMMANDS.items():
        argv = [*command, *_flags(whole, first=stage == "build")]
        _call(argv, env, folder)  # what it compiles the next ones find in a cache
        shutil.rmtree(whole)
        shutil.copytree(start, whole) if start.exists() else whole.mkdir()
        began = time.monotonic()
        _call(argv, env, folder)
        seconds = time.monotonic() - began
        trials = []
        for _ in range(-(-kills // KILLS_PER_RUN)):
            trials.append(_trial(stage, argv, env, folder, start, whole, seconds, rng))
        yield stage, trials
        shutil.rmtree(start, ignore_errors=True)
        shutil.copytree(whole, start)


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Returns the environment of the processes: one device, one compilation cache."""
    dropped = ("XLA_FLAGS", "GEMINI_", "GOOGLE_", "TFDS_", "JAX_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return env | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@contextlib.contextmanager
def judge() -> Iterator[Mapping[str, str]]:
    """A Gemini on loopback whose calls take a while; the variables that lead to it."""
    path = pathlib.Path(__file__).parents[1] / "gemini_server.py"
    spec = importlib.util.spec_from_file_location("gemini_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Slow(module.GeminiServer):
        def _take(self, call: Any) -> Any:
            time.sleep(REPLY_S)
            return super()._take(call)

    with Slow() as server:
        server._http.handle_error = lambda *_: None  # whoever asked was killed
        yield {"GOOGLE_GEMINI_BASE_URL": server.url, "GEMINI_API_KEY": server.key}


def _flags(workdir: pathlib.Path, first: bool) -> list[str]:
    config = [f"--config.{name}={value}" for name, value in TINY.items()]
    file = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"
    return [f"--workdir={workdir}", *([f"--config={file}", *config] if first else ())]


def _call(argv: Sequence[str], env: Mapping[str, str], folder: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mcr_jax", *argv],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mcr {argv[0]}: status {done.returncode}\n{done.stdout}{done.stderr}")


def _trial(
    stage: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: pathlib.Path,
    start: pathlib.Path,
    whole: pathlib.Path,
    seconds: float,
    rng: random.Random,
) -> Trial:
    """Kills a stage in a workdir of its own, calls it again until it is done, and compares."""
    workdir = folder / "killed"
    argv = [argument.replace(str(whole), str(workdir)) for argument in argv]
    kills: list[float] = []
    while len(kills) < KILLS_PER_RUN:
        if not kills:
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(start, workdir) if start.exists() else workdir.mkdir()
        at = rng.uniform(0.1, 1.0) * seconds
        if _killed_at(at, argv, env, folder):
            kills.append(at)
        else:  # it had ended before: from the start again
            kills.clear()
    _call(argv, env, folder)
    return Trial(tuple(kills), tuple(differences(stage, whole, workdir)))


def _killed_at(
    at: float, argv: Sequence[str], env: Mapping[str, str], folder: pathlib.Path
) -> bool:
    process = subprocess.Popen(
        [sys.executable, "-m", "mcr_jax", *argv],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(at)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def differences(stage: str, whole: pathlib.Path, killed: pathlib.Path) -> Iterator[str]:
    """The names of the artifacts of a stage that are not the same in two workdirs."""
    for name, state in _STATES[stage].items():
        if state(whole) != state(killed):
            yield f"{name} differs"


def _cases(workdir: pathlib.Path) -> Any:
    from mcr_jax.data.dataset import load_cases

    return [load_cases(workdir / "data", split) for split in ("train", "val", "test")]


def _traces(workdir: pathlib.Path) -> Any:
    return pyarrow.parquet.read_table(workdir / "traces.parquet").to_pylist()


def _weights(workdir: pathlib.Path) -> Any:
    """Names and digests of the arrays of the newest checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    steps = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    newest = max(steps, key=lambda path: int(path.name))
    states = {}
    for item in sorted(path for path in newest.iterdir() if (path / "_METADATA").exists()):
        leaves = jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(item))
        for path, leaf in leaves:
            name = f"{item.name}{jax.tree_util.keystr(path)}"
            states[name] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    assert states
    return newest.name, states


def _losses(workdir: pathlib.Path) -> Any:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{n: v for n, v in json.loads(line).items() if n not in TIMES} for line in lines]


def _of_stage(*stages: str) -> Callable[[pathlib.Path], Any]:
    def state(workdir: pathlib.Path) -> Any:
        return {place: row for place, row in said(workdir).items() if place[0] in stages}

    return state


def _json(name: str) -> Callable[[pathlib.Path], Any]:
    return lambda workdir: read(workdir / name)


def _bytes(name: str) -> Callable[[pathlib.Path], Any]:
    return lambda workdir: (workdir / name).read_bytes()


_STATES: dict[str, dict[str, Callable[[pathlib.Path], Any]]] = {
    "build": {"the dataset": _cases},
    "stitch": {
        "traces.parquet": _traces,
        "stitch.json": _json("stitch.json"),
        "the ledger": _of_stage("stitch", "distortion"),
    },
    "train": {"the checkpoint": _weights, "metrics.jsonl": _losses},
    "sample": {"the ledger": _of_stage("sample")},
    "judge": {"the ledger": _of_stage("diagnosis", "reasons")},
    "report": {name: _bytes(name) for name in ("results.json", "scores.json", "report.html")},
}


if __name__ == "__main__":
    sys.exit(main())
