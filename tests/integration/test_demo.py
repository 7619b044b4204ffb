"""Demo: artifacts, bitwise repeatability, refused settings."""

import dataclasses
import hashlib
import json
import pathlib

import pytest
from processes import COMPLETIONS, MODELS, TINY, is_schema_1, read, rows, said

from mcr_jax import config as configs
from mcr_jax import synthetic
from mcr_jax.cases import write_jsonl
from mcr_jax.experiment import seal
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.workdir import Workdir

ARTIFACTS = ("config.json", "manifest.json", "metrics.jsonl", "ledger.sqlite", "scores.json")


def _state(workdir: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Time and content of every file but the lock's and SQLite's index, which readers touch."""
    return {
        str(path.relative_to(workdir)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name not in (".lock", "ledger.sqlite-shm")
    }


def test_results_follow_schema_1(finished):
    results = json.loads(finished.results)
    is_schema_1(results)
    assert tuple(results["models"]) == MODELS
    for model in results["models"].values():
        assert sum(model["outcomes"].values()) == COMPLETIONS / len(MODELS)
        assert model["accuracy"]["1"]["total"] == TINY["synthetic.test"]
    assert {(c["a"], c["b"]) for c in results["comparisons"]} == {MODELS}
    assert results["judge"]["name"] == "offline" and results["data"]["synthetic"] is True


def test_every_artifact_of_the_design_is_there(finished):
    assert all((finished.path / name).stat().st_size for name in ARTIFACTS)
    steps = [int(path.name) for path in (finished.path / "checkpoints").glob("[0-9]*")]
    assert max(steps) == TINY["train.steps"]
    lines = (finished.path / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [m["step"] for m in logged if "loss" in m] == [*range(1, TINY["train.steps"] + 1)]


def test_the_report_and_the_table_show_both_models(finished):
    page = (finished.path / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "not for patient care" in page
    assert all(name in page and name in finished.stdout for name in MODELS)
    assert "accuracy@1" in finished.stdout and "verified recall" in finished.stdout
    assert str(finished.path / "report.html") in finished.stdout


@pytest.mark.promise("A second run does nothing and says so.")
def test_a_second_call_does_nothing_and_says_so(mcr, workdir, tiny):
    before = _state(workdir)
    assert before
    again = mcr.ok("demo", f"--workdir={workdir}", *tiny)
    assert again.startswith("demo: nothing to do")
    assert "accuracy@1" in again
    assert _state(workdir) == before


@pytest.mark.promise(
    "A repeated call resumes: nothing is built, trained, sampled, judged or exported twice."
)
def test_each_stage_finds_its_work_done(mcr, workdir):
    before = said(workdir)
    for command in ("train", "sample", "judge"):
        for line in mcr.ok(command, f"--workdir={workdir}").splitlines():
            assert "nothing to do" in line
    assert said(workdir) == before


def test_verify_agrees_until_a_number_is_changed_and_demo_mends_it(mcr, workdir, tiny):
    original = (workdir / "results.json").read_bytes()
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")
    results = json.loads(original)
    results["models"]["sft"]["accuracy"]["1"]["high"] += 1e-3
    (workdir / "results.json").write_text(json.dumps(results))
    done = mcr("verify", f"--workdir={workdir}")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("results.json: models.sft.accuracy.1.high is ")
    assert "1 values differ" in done.stderr
    mcr.ok("demo", f"--workdir={workdir}", *tiny)
    assert (workdir / "results.json").read_bytes() == original


@pytest.mark.parametrize(
    "changed",
    ["seed=7", "prompt=diagnose", "model.width=64", "optim.learning_rate=1.0", "train.steps=25"],
)
def test_what_the_weights_follow_from_cannot_change_in_a_workdir(mcr, workdir, tiny, changed):
    before = _state(workdir)
    flags = [flag for flag in tiny if changed.partition("=")[0] not in flag]
    line = mcr.fails(2, "demo", f"--workdir={workdir}", *flags, f"--config.{changed}")
    assert f"made with {changed.partition('=')[0]}=" in line and "another --workdir" in line
    assert _state(workdir) == before


@pytest.mark.slow
def test_settings_of_sampling_and_judging_may_change_in_a_workdir(mcr, workdir, tiny):
    old = {row["digest"] for row in rows(workdir, "sample")}
    more = ("--config.sample.temperature=0.3", "--config.judge.recall_samples=1")
    flags = [flag for flag in tiny if "recall_samples" not in flag]
    out = mcr.ok("demo", f"--workdir={workdir}", *flags, *more)
    assert "train: nothing to do" in out
    assert f"sample: base: {COMPLETIONS // 2} completions, {COMPLETIONS // 2} drawn now" in out
    assert len({row["digest"] for row in rows(workdir, "sample")} - old) == len(old)
    results = read(workdir / "results.json")
    assert results["config"]["recall_samples"] == 1
    assert sum(results["models"]["sft"]["outcomes"].values()) == COMPLETIONS // 2
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes_and_the_same_ledger(mcr, finished, tiny):
    mcr.ok("demo", "--workdir=elsewhere", *tiny)
    elsewhere = mcr.folder / "elsewhere"
    assert (elsewhere / "results.json").read_bytes() == finished.results
    assert (elsewhere / "scores.json").read_bytes() == (finished.path / "scores.json").read_bytes()
    assert said(elsewhere) == said(finished.path)


@pytest.mark.slow
@pytest.mark.promise("Exit status: 0 done;")
def test_the_stages_one_by_one_give_what_the_demo_gives(mcr, finished, tiny, tiny_config):
    sizes = {split: TINY[f"synthetic.{split}"] for split in ("train", "val", "test")}
    made = synthetic.cases(0, sizes)
    for split in sizes:
        cases = [case for case in made if case.split == split]
        write_jsonl(cases, mcr.folder / "clinic" / f"{split}.jsonl")
    mcr.ok("build", "--source=clinic", "--data_dir=w/data")
    flags = ("--workdir=w", f"--config={tiny_config}")
    for command in ("train", "sample", "judge", "score", "report"):
        mcr.ok(command, *flags)
    workdir = mcr.folder / "w"
    assert (workdir / "results.json").read_bytes() == finished.results
    assert (workdir / "report.html").read_text().lower().startswith("<!doctype html>")
    assert said(workdir) == said(finished.path)
    mcr.ok("eval", "--workdir=w")
    assert "nothing to do" in mcr.ok("demo", "--workdir=w", *tiny)
    assert (workdir / "results.json").read_bytes() == finished.results


def test_a_second_mcr_in_a_workdir_at_work_is_refused(mcr, workdir, tiny):
    (workdir / "results.json").unlink()
    with Workdir(workdir).locked():
        for command in ("train", "eval", "report"):
            line = mcr.fails(1, command, f"--workdir={workdir}")
            assert "another mcr is at work" in line and str(workdir) in line
        assert "another mcr" in mcr.fails(1, "demo", f"--workdir={workdir}", *tiny)
    assert not (workdir / "results.json").exists()


def test_what_is_sealed_is_not_trusted_after_the_ledger_grew(workdir):
    """A verdict judged again, say after an outage, must reach results.json by the next eval."""
    experiment = Experiment(configs.load(workdir / "config.json"), Workdir(workdir))
    assert seal.finished(experiment, "eval")
    with Ledger(workdir / "ledger.sqlite") as ledger:
        attempt = next(iter(ledger.answers(Scope("sample", "sft")).values()))
        ledger.write(dataclasses.replace(attempt, attempt=attempt.attempt + 1))
    assert not seal.finished(experiment, "eval")


def test_weights_are_not_trained_on_under_another_prompt(mcr, workdir):
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["train"]["prompt"] = "0" * 64
    (workdir / "manifest.json").write_text(json.dumps(manifest))
    line = mcr.fails(2, "train", f"--workdir={workdir}")
    assert "another prompt" in line and str(workdir) in line


def test_build_prepares_what_the_config_names(mcr, tiny_config):
    mcr.ok("build", f"--config={tiny_config}", "--workdir=w")
    assert (mcr.folder / "w" / "data" / "medcasereasoning").is_dir()
    assert "nothing to do" in mcr.ok("build", "--workdir=w")
