"""A run killed at any stage resumes and ends like an uninterrupted run."""

import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
from collections.abc import Callable

import pytest
from processes import COMPLETIONS, TIMES, TINY, Mcr, read, rows, said, unfinished, until

from mcr_jax.completion import render
from mcr_jax.data.dataset import load_cases

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


IN_FLIGHT, ANSWERED = 4, 7  # calls at the kill that never get a reply, and those before them
FEW = 20  # samples per case that keep the tiny decoder busy for a second
MANY = 4000  # of a file: more than one transaction of the ledger


def _each_reply_is_its_own(server) -> None:
    """Lets a server answer with a digest of the request."""

    def reply(call):
        request = json.dumps([call.path, call.body], sort_keys=True).encode()
        return render(hashlib.sha256(request).hexdigest(), "Brindle rime")

    server._judgement = reply


def _drawn(workdir: pathlib.Path, model: str) -> int:
    """Returns the number of a model's completions in the ledger."""
    return sum(row["model"] == model for row in rows(workdir, "sample"))


def _completions(workdir: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Writes a file of completions, every second of them right."""
    with path.open("w") as file:
        for case in load_cases(workdir / "data", "test"):
            for sample in range(MANY):
                answer = case.final_diagnosis if sample % 2 else f"Sable gout {sample}"
                line = {"case": case.fingerprint, "text": render(case.statements[0], answer)}
                file.write(json.dumps(line) + "\n")
    return path


@pytest.mark.promise("A killed run resumes, and a recorded completion is never requested")
def test_killed_in_every_kind_of_model_it_ends_like_an_uninterrupted_run(
    mcr, workdir, finished, tiny_folder, openai, gemini
):
    """Kills one workdir once in each model.

    The demo above is killed in `base`; `sft` runs the code of `sft@STEP`, a named endpoint that of
    `openai:`.
    """
    unfinished(workdir, "sample")
    whole = shutil.copytree(workdir, mcr.folder / "whole")
    step = min(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    services = {"g": gemini, "o": openai}
    models = {
        "f": f"file:{_completions(workdir, mcr.folder / 'made.jsonl')}",
        "o": "openai:m",
        "g": "gemini:gemini-2.5-flash",
        "e": "ours:another/m",
        "s": f"sft@{step}",
        "h": f"hf:{tiny_folder}",
    }

    def command(folder, names, n):
        listed = ",".join(f"{name}={models[name]}" for name in names)
        flags = {"sample.models": listed, "sample.n": n, "sample.concurrency": IN_FLIGHT}
        flags |= {"endpoints": f"ours={openai.url} OURS_KEY"}
        flags = [f"--config.{field}={value}" for field, value in flags.items()]
        return ("eval", f"--workdir={folder}", *flags)

    env = {"OPENAI_BASE_URL": openai.url, "OPENAI_API_KEY": openai.key, "OURS_KEY": "ours-key"}
    env |= {"GOOGLE_GEMINI_BASE_URL": gemini.url, "GEMINI_API_KEY": gemini.key}
    for server in (openai, gemini):
        _each_reply_is_its_own(server)
    mcr.ok(*command(whole, models, FEW), **env)
    wanted = said(whole)
    paid = len(openai.calls), len(gemini.calls)

    for name in "fogsh":
        call, condition = command(workdir, models, FEW), lambda: _drawn(workdir, name)  # noqa: B023
        if name == "f":
            call = command(workdir, ["f"], MANY)
        elif server := services.get(name):
            answers = [server.by_rule()] * ANSWERED + [server.hangs()] * IN_FLIGHT
            server.then(*answers)
            calls = len(server.calls) + len(answers)
            condition = lambda: len(server.calls) == calls and _drawn(workdir, name) == ANSWERED  # noqa: B023, E731
        _killed(mcr, condition, *call, **env)
        there = said(workdir).keys() & wanted.keys()
        places = [place for place in wanted if (place[0], place[2]) == ("sample", name)]
        assert 0 < len(there & set(places)) < len(places), f"not killed in {name}"
    before = _written(workdir)
    mcr.ok(*command(workdir, models, FEW), **env)
    assert _written(workdir)[: len(before)] == before
    assert _most_often(workdir) == 1
    assert wanted.items() <= said(workdir).items()
    assert read(workdir / "results.json") == read(whole / "results.json")
    assert len(openai.calls) == 2 * paid[0] + IN_FLIGHT
    assert len(gemini.calls) == 2 * paid[1] + IN_FLIGHT


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
