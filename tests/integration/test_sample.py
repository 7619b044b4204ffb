"""Sampling draws only missing completions, the same on any devices."""

import shutil
import subprocess
import sys

import pytest
from processes import COMPLETIONS, MODELS, TINY, read, rows, said, unfinished

pytestmark = pytest.mark.slow


@pytest.mark.promise("A larger `sample.n` keeps the samples that exist.")
def test_more_samples_draw_the_new_ones_only_and_keep_every_verdict(mcr, workdir, tiny):
    before = [tuple(row) for row in rows(workdir)]
    n, new = TINY["sample.n"] + 2, 2 * TINY["synthetic.test"]
    flags = [flag for flag in tiny if "sample.n=" not in flag]
    out = mcr.ok("demo", f"--workdir={workdir}", *flags, f"--config.sample.n={n}")
    for model in MODELS:
        assert f"sample: {model}: {n * new // 2} completions, {new} drawn now" in out
    after = [tuple(row) for row in rows(workdir)]
    assert after[: len(before)] == before
    assert [row[1] for row in after[len(before) :]].count("sample") == 2 * new
    places = [tuple(row)[1:7] for row in rows(workdir)]
    assert len(set(places)) == len(places)
    results = read(workdir / "results.json")
    assert results["config"]["samples"] == n
    assert "5" in results["models"]["sft"]["accuracy"]
    assert sum(results["models"]["sft"]["outcomes"].values()) == n * new // 2
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")


@pytest.mark.promise("both are counted in results.json and the report")
def test_a_prompt_without_room_is_an_outcome_that_is_told_scored_and_shown(mcr, workdir, tiny):
    flags = [flag for flag in tiny if "sample.prompt_tokens=" not in flag]
    out = mcr.ok("demo", f"--workdir={workdir}", *flags, "--config.sample.prompt_tokens=40")
    cases, completions = TINY["synthetic.test"], COMPLETIONS // 2
    assert f"{cases} of {cases} prompts have more than config.sample.prompt_tokens=40" in out
    assert "end as prompt_too_long; the longest has " in out
    for model in read(workdir / "results.json")["models"].values():
        assert model["outcomes"] == {"prompt_too_long": completions}
        assert (model["accuracy"]["1"]["resolved"], model["accuracy"]["1"]["worst"]) == (0, 0)
    assert "prompt too long" in (workdir / "report.html").read_text()
    assert "prompt_too_long" in out.partition("accuracy@1")[2]


def test_another_number_of_devices_draws_the_same(mcr, workdir, finished, tiny):
    unfinished(workdir, "sample")
    flags = f"{mcr.env['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    two = {"XLA_FLAGS": flags}  # compiled as the one device's programs were: the same rounding
    out = mcr.ok("sample", f"--workdir={workdir}", "--config.sample.models=('base',)", **two)
    assert "2 x cpu: 2 copies of the model (mesh: data 2, tensor 1)" in out
    assert "8 slots for each copy, 16 in all" in out
    assert said(workdir) == {
        place: row
        for place, row in said(finished.path).items()
        if (place[0], place[2]) == ("sample", "base")
    }


def test_every_way_to_sample_ends_in_the_ledger_with_its_plan_in_the_manifest(mcr, workdir, tiny):
    flags = {"dtype": "bfloat16", "kv_dtype": "int8", "top_k": 3, "stop": "('e', 'zz')"}
    flags = [f"--config.sample.{name}={value}" for name, value in flags.items()]
    flags.append("--config.sample.models=('sft',)")
    mcr.ok("sample", f"--workdir={workdir}", *flags)
    manifest = read(workdir / "manifest.json")
    plan = manifest["sample.sft"]["plan"]
    assert (plan["dtype"], plan["kv_dtype"], plan["slots"]) == ("bfloat16", "int8", 8)
    assert plan["mesh"] == {"data": 1, "tensor": 1} and plan["bytes_per_device"]["weights"] > 0
    assert len(manifest["sample.sft"]["config"]) == 64
    drawn = rows(workdir, "sample")[COMPLETIONS:]
    assert len(drawn) == COMPLETIONS // 2
    for row in drawn:
        assert row["mean_logprob"] < 0
        assert row["text"].find("e") in (-1, len(row["text"]) - 1)


def test_options_that_are_refused_at_once_are_not_those_of_the_next_call(mcr, workdir):
    before = (workdir / "config.json").read_bytes()
    more = f"--config.sample.n={TINY['sample.n'] + 1}"  # or there is nothing to draw
    for option, told in (
        ("sample.models=base,tuned", "there is no model 'tuned'"),
        ("sample.tensor=3", "config.sample.tensor=3 does not divide the 1 devices"),
        ("data.eval_split=tset", "config.data.eval_split='tset'"),
    ):
        assert told in mcr.fails(2, "sample", f"--workdir={workdir}", more, f"--config.{option}")
        assert (workdir / "config.json").read_bytes() == before
    assert mcr.ok("sample", f"--workdir={workdir}").count("nothing to do") == len(MODELS)


def _changed_scores(mcr, workdir):
    """Scores again with another confidence; returns what was printed."""
    out = mcr.ok("eval", f"--workdir={workdir}", "--config.score.confidence=0.9")
    assert read(workdir / "results.json")["config"]["confidence"] == 0.9
    return out


def test_another_confidence_is_scored_without_jax_and_its_devices(mcr, workdir):
    before = [tuple(row) for row in rows(workdir)]
    code = (
        "import sys\nfrom mcr_jax.cli.main import main\n"
        f"status = main(['eval', '--workdir={workdir}', '--config.score.confidence=0.9'])\n"
        "assert status == 0\nprint('jax' in sys.modules, 'orbax.checkpoint' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=mcr.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
    for model in MODELS:
        assert f"sample: {model}: {COMPLETIONS // 2} completions, nothing to do" in done.stdout
    assert [tuple(row) for row in rows(workdir)] == before
    assert "agrees" in mcr.ok("verify", f"--workdir={workdir}")


def test_scores_can_be_made_again_when_the_checkpoints_are_gone_or_copied(mcr, workdir):
    shutil.move(workdir / "checkpoints", workdir / "kept")
    out = _changed_scores(mcr, workdir)
    assert "its weights are no longer here; the completions in the ledger are of checkpoint" in out
    shutil.copytree(workdir / "kept", workdir / "checkpoints", copy_function=shutil.copyfile)
    code = "from mcr_jax.model import store\ndel store.named\nfrom mcr_jax.cli import main\n"
    code += f"assert main.main(['sample', '--workdir={workdir}']) == 0"
    subprocess.run([sys.executable, "-c", code], env=mcr.env, check=True, capture_output=True)


def test_a_checkpoint_that_was_written_over_is_sampled_again(mcr, workdir, tiny):
    before = {row["digest"] for row in rows(workdir, "sample") if row["model"] == "sft"}
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    older = min((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    assert newest != older
    shutil.rmtree(newest)
    shutil.copytree(older, newest)  # the same step, the same names, other weights
    out = mcr.ok("sample", f"--workdir={workdir}")
    assert f"sample: base: {COMPLETIONS // 2} completions, nothing to do" in out
    assert f"sample: sft: {COMPLETIONS // 2} completions, {COMPLETIONS // 2} drawn now" in out
    after = {row["digest"] for row in rows(workdir, "sample") if row["model"] == "sft"}
    assert after > before
    assert mcr.ok("sample", f"--workdir={workdir}").count("nothing to do") == len(MODELS)
