"""A run killed at any stage resumes and ends like an uninterrupted run."""

import collections
import json
import pathlib
import random
import signal
from collections.abc import Callable

import pytest
from processes import COMPLETIONS, TIMES, TINY, Mcr, read, rows, said, unfinished, until

pytestmark = pytest.mark.slow

# So many samples per case keep the tiny decoder busy for seconds: a signal comes before the end.
LONG, LONG_COMPLETIONS = "--config.sample.n=300", 2 * TINY["synthetic.test"] * 300


def _killed(mcr: Mcr, condition: Callable[[], bool], *args: object, **env: str) -> str:
    """Starts a run, kills it as soon as `condition` holds; returns what it printed."""
    process = mcr.start(*args, **env)
    try:
        until(condition, process)
    finally:
        process.kill()
        out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return out


def _written(workdir: pathlib.Path, stage: str = "%") -> list[tuple]:
    """The ledger's rows as they are, ids and times included: equal only if never written again."""
    return [tuple(row) for row in rows(workdir, stage)]


def _most_often(workdir: pathlib.Path) -> int:
    """Returns the largest number of attempts at one row of the ledger."""
    place = ("stage", "case_fingerprint", "model", "sample", "judge", "repeat")
    counts = collections.Counter(tuple(row[name] for name in place) for row in rows(workdir))
    return max(counts.values())


def _step(workdir: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 without any."""
    saved = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in saved if name.isdecimal()), default=0)


def _last(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl, whose last line may be half written."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: m[name] for name in m.keys() - TIMES} for m in lines]


@pytest.mark.promise("After `kill -9` the same command ends with the same bits.")
def test_killed_three_times_at_random_steps_the_losses_are_those_of_one_run(mcr, workdir, finished):
    unfinished(workdir, "train", "sample")
    steps = sorted(random.Random(0).sample(range(2, TINY["train.steps"]), 3))
    for step in steps:
        _killed(mcr, lambda n=step: _last(workdir) >= n, "train", f"--workdir={workdir}")
        assert _step(workdir) <= TINY["train.steps"] - 1, "not killed in training"
    out = mcr.ok("train", f"--workdir={workdir}")
    assert f"train: step {TINY['train.steps']}, resumed from step" in out
    assert _metrics(workdir) == _metrics(finished.path)


@pytest.mark.promise("SIGTERM saves the current step and exits with 75.")
@pytest.mark.promise("75 stopped by SIGTERM or a daily quota, and the same command resumes")
def test_sigterm_in_training_loses_no_step_and_has_a_status_of_its_own(mcr, finished, tiny):
    workdir = mcr.folder / "w"
    process = mcr.start("demo", "--workdir=w", *tiny)
    until(lambda: (workdir / "metrics.jsonl").exists() and len(_metrics(workdir)) > 5, process)
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 75, out
    step = _step(workdir)
    assert f"step {step} is saved" in out
    assert 5 < step < TINY["train.steps"] and _metrics(workdir)[-1]["step"] == step
    out = mcr.ok("demo", "--workdir=w", *tiny)
    assert f"resumed from step {step}" in out
    assert _metrics(workdir) == _metrics(finished.path)
    assert read(workdir / "results.json") == read(finished.path / "results.json")


@pytest.mark.promise("A killed run resumes and ends with the same numbers.")
@pytest.mark.promise("or after a resume from `kill -9`")
def test_killed_in_training_sampling_and_judging_it_ends_as_if_it_never_was(mcr, finished, tiny):
    workdir = mcr.folder / "w"
    command = ("demo", "--workdir=w", *tiny)

    _killed(mcr, lambda: _step(workdir) > 0, *command)
    assert 0 < _step(workdir) < TINY["train.steps"], "not killed in training"

    out = _killed(mcr, lambda: len(rows(workdir)) > 0, *command, LONG)
    assert f"train: step {TINY['train.steps']}, resumed from step" in out
    drawn = _written(workdir)
    assert 0 < len(drawn) < LONG_COMPLETIONS, "not killed in sampling"

    out = _killed(mcr, lambda: len(rows(workdir, "reasons")) > 0, *command)
    assert "train: nothing to do" in out
    judged = _written(workdir)
    assert judged[: len(drawn)] == drawn
    assert len(judged) > COMPLETIONS

    out = mcr.ok(*command)
    assert out.count("completions, nothing to do") == 2
    assert _written(workdir)[: len(judged)] == judged
    assert _most_often(workdir) == 1
    assert (workdir / "results.json").read_bytes() == finished.results
    assert said(finished.path).items() <= said(workdir).items()
    assert _metrics(workdir) == _metrics(finished.path)


def test_sigterm_in_sampling_loses_no_completion_and_has_a_status_of_its_own(
    mcr, workdir, finished, tiny
):
    unfinished(workdir, "sample")
    command = ("demo", f"--workdir={workdir}", *tiny)
    process = mcr.start(*command, LONG)
    until(lambda: len(rows(workdir)) > 0, process)
    process.terminate()
    out, _ = process.communicate(timeout=mcr.seconds)
    assert process.returncode == 75, out
    assert out.splitlines()[-1].startswith("mcr demo: stopped by SIGTERM; every finished")
    assert "Traceback" not in out
    drawn = _written(workdir)
    assert 0 < len(drawn) < LONG_COMPLETIONS, "not stopped in sampling"
    mcr.ok(*command)
    assert _written(workdir)[: len(drawn)] == drawn
    assert said(finished.path).items() <= said(workdir).items()


@pytest.mark.promise("a recorded reply is never requested again")
def test_no_verdict_that_was_paid_for_is_asked_again(mcr, workdir, tiny, gemini):
    """The service stops answering after a few verdicts: the kill surely comes between two calls."""
    unfinished(workdir, "judge")
    keys = {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    command = ("demo", f"--workdir={workdir}", "--judge=gemini", *tiny)
    answer, few = gemini._take, 5
    gemini._take = lambda call: answer(call) if len(gemini.calls) < few else gemini.hangs()
    _killed(mcr, lambda: len(rows(workdir, "reasons")) >= few, *command, **keys)
    paid = _written(workdir, "reasons")
    assert len(paid) == few
    gemini._take = answer

    mcr.ok(*command, **keys)
    verdicts = read(workdir / "results.json")["judge"]["verdicts"]
    wanted = sum(stage["wanted"] for stage in verdicts.values())
    assert wanted == sum(stage["settled"] for stage in verdicts.values()) > few
    assert len(gemini.calls) == len({call.text for call in gemini.calls})  # none is paid twice
    assert _written(workdir, "reasons")[:few] == paid
    assert _most_often(workdir) == 1
