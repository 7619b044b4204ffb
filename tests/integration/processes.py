"""Helpers of the integration tests: run `mcr` and read its artifacts."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Mapping

from mcr_jax.cli.main import main

# A decoder that compiles in seconds and learns nothing: only the way through the stages matters.
TINY = {
    "synthetic.train": 40,
    "synthetic.val": 4,
    "synthetic.test": 6,
    "tokenizer.vocab_size": 400,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.head_dim": 32,
    "model.mlp_width": 64,
    "train.steps": 24,
    "train.rows": 2,
    "train.row_tokens": 700,
    "train.checkpoint_every": 4,
    "train.eval_every": 12,
    "sample.n": 3,
    "sample.max_tokens": 24,
    "sample.prompt_tokens": 400,
    "sample.slots": 8,
    "judge.recall_samples": 2,
    "score.resamples": 200,
}
# What a line of metrics.jsonl has from the clock.
TIMES = {"seconds", "tokens_per_second", "mfu", "data_wait", "goodput"}
MODELS, STAGES = ("base", "sft"), ("sample", "diagnosis", "reasons")
COMPLETIONS = len(MODELS) * TINY["synthetic.test"] * TINY["sample.n"]


@dataclasses.dataclass(frozen=True)
class Mcr:
    """Runs `mcr` in processes of their own, in `folder`, with `env` as their whole environment.

    Attributes:
      seconds: after which a process fails the test.
    """

    folder: pathlib.Path
    env: Mapping[str, str]
    seconds: float = 300

    def argv(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "mcr_jax", *map(str, args)]

    def __call__(self, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs to the end; whatever the outcome, no traceback may be seen."""
        done = subprocess.run(
            self.argv(*args),
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=self.seconds,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def ok(self, *args: object, **env: str) -> str:
        """Runs, must succeed without a word on stderr; returns stdout."""
        done = self(*args, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fails(self, status: int, *args: object, **env: str) -> str:
        """Runs, must fail with `status`; returns the one line on stderr."""
        done = self(*args, **env)
        assert done.returncode == status, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line

    def start(self, *args: object, **env: str) -> subprocess.Popen[str]:
        """Starts a process that the test kills or waits for."""
        return subprocess.Popen(
            self.argv(*args),
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


class Here(Mcr):
    """Runs `mcr` in the test's own process: for calls that end before they compute anything."""

    def __call__(self, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        argv, out, err = list(map(str, args)), io.StringIO(), io.StringIO()
        sys.modules.pop("config_config", None)  # the config file of an earlier call
        with (
            contextlib.chdir(self.folder),
            unittest.mock.patch.dict(os.environ, env),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(argv)
        return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


@dataclasses.dataclass(frozen=True)
class Finished:
    """A workdir in which the tiny demo has run to its end, and what that run printed."""

    path: pathlib.Path
    stdout: str

    @property
    def results(self) -> bytes:
        return (self.path / "results.json").read_bytes()


def unfinished(workdir: pathlib.Path, *stages: str) -> None:
    """Takes the results, and the artifacts of `stages` (train, sample, judge), out of a workdir."""
    for name in ("results.json", "scores.json", "report.html"):
        (workdir / name).unlink()
    if "train" in stages:
        shutil.rmtree(workdir / "checkpoints")
        (workdir / "metrics.jsonl").unlink()
    if "sample" in stages:
        (workdir / "ledger.sqlite").unlink()
    elif "judge" in stages:
        with sqlite3.connect(workdir / "ledger.sqlite") as db:
            db.execute("DELETE FROM attempts WHERE stage <> 'sample'")
            db.execute("DELETE FROM wanted WHERE stage <> 'sample'")
        db.close()


def rows(workdir: pathlib.Path, stage: str = "%") -> list[sqlite3.Row]:
    """All attempts in a workdir's ledger, in the order they were written; none if there is none."""
    try:
        db = sqlite3.connect(f"file:{workdir / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)
    except sqlite3.OperationalError:
        return []
    try:
        db.row_factory = sqlite3.Row
        return db.execute(
            "SELECT * FROM attempts WHERE stage LIKE ? ORDER BY id", (stage,)
        ).fetchall()
    except sqlite3.OperationalError:  # not there yet, or not yet laid out
        return []
    finally:
        db.close()


def said(workdir: pathlib.Path) -> dict[tuple, tuple]:
    """Returns the rows of the ledger without times: row to outcome, text, tokens and verdict."""
    place = ("stage", "case_fingerprint", "model", "sample", "judge", "repeat", "digest", "attempt")
    content = ("outcome", "text", "verdict", "error", "prompt_tokens", "output_tokens")
    content = (*content, "mean_logprob")
    return {
        tuple(row[name] for name in place): tuple(row[name] for name in content)
        for row in rows(workdir)
    }


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns as soon as `condition` holds; fails if `process` ends before, or after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"it ended before: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.001)


def is_schema_1(results: Mapping) -> None:
    """Asserts the form of results.json that the design promises."""
    bounds = {"value", "low", "high", "resolved", "total", "worst", "best"}
    assert results["schema"] == 1
    assert results["models"] and {"comparisons", "judge", "data"} <= results.keys()
    for model in results["models"].values():
        metrics = [model["reasoning_recall"], model["reasoning_recall_verified"]]
        metrics += model["accuracy"].values()
        assert set(model["accuracy"]) <= {"1", "5", "10"}
        assert "1" in model["accuracy"]
        for metric in metrics:
            assert metric.keys() == bounds
            assert 0 <= metric["resolved"] <= metric["total"]
            assert 0 <= metric["worst"] <= metric["best"] <= 1
            if metric["resolved"]:
                assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
        assert all(count > 0 for count in model["outcomes"].values())
    for entry in results["comparisons"]:
        assert {entry["a"], entry["b"]} <= results["models"].keys()
        assert {"metric", "difference", "low", "high", "p_value", "test"} <= entry.keys()


def read(path: pathlib.Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())
