"""Missing requirements are reported before the first sample, in one line with the remedy."""

import collections
import shutil
import sqlite3
import subprocess

import pytest

from mcr_jax import completion
from mcr_jax import workdir as workdirs
from mcr_jax.cli.main import main


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_missing_checkpoint_is_told_before_base_is_sampled(call, tmp_path, command):
    status, (line,) = call(command, **{"sample.models": "base,sft"})
    assert status == 1
    assert "no checkpoint here" in line and "--config.sample.models=base" in line
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"judge.name": "gemini"}, 2, ["GEMINI_API_KEY", "config.judge.name"]),
        ({"judge.name": "tarot"}, 2, ["set it to offline, gemini, openai"]),
        ({"judge.models": "offline,gemini"}, 2, ["GEMINI_API_KEY"]),
        ({"judge.models": "offline,x=hf:DIR"}, 2, ["'hf:DIR'", "served"]),
        ({"endpoints": "x=http://me:pw@host/v1"}, 2, ["URL of x", "NAME=URL KEY_VARIABLE"]),
        ({"endpoints": "x=http://host/v1?key=pw"}, 2, ["URL of x", "NAME=URL KEY_VARIABLE"]),
        ({"prompts": "own"}, 2, ["own/judge_reasons.txt", "{{statements}}, {{trace}}"]),
        ({"model.folder": ""}, 2, ["--config.model.folder=DIR"]),
        ({"model.folder": "gone"}, 2, ["config.model.folder=gone: no such", "--local-dir=gone"]),
        ({"sample.models": "x=hf:gone"}, 2, ["x=hf:gone in config.sample.models: no such"]),
        ({"sample.models": "hf:."}, 2, ["hf:. in config.sample.models holds no config.json"]),
        ({"sample.models": "base,"}, 2, ["config.sample.models=base, has an empty entry"]),
        ({"judge.models": "offline,"}, 2, ["config.judge.models=offline, has an empty entry"]),
        ({"model.folder": "."}, 2, ["holds no config.json"]),
        ({"model.shape": "qwen2_5_7b"}, 2, ["type qwen3", "qwen2", "config.model.shape=any"]),
        ({"data.data_dir": "nowhere"}, 1, ["`mcr build --data_dir=nowhere`"]),
        ({"data.eval_split": "dev"}, 2, ["config.data.eval_split='dev'"]),
    ],
    ids=str,
)
def test_what_is_missing_is_told_before_the_first_sample(
    call, tmp_path, monkeypatch, fields, status, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "judge_reasons.txt").write_text("Found in {{trace}}?")
    found, (line,) = call("eval", workdir="w", **fields)
    assert found == status and line.startswith("mcr eval: ")
    assert all(words in line for words in told), line
    assert not list(tmp_path.glob("w/ledger.sqlite"))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("judge.repeat", "three", "a whole number"),
        ("score.confidence", "high", "a number"),
        ("judge.batch", "maybe", "True or False"),
    ],
)
def test_a_value_of_another_type_says_which_type_the_field_has(
    tmp_path, capsys, field, value, wanted
):
    flags = ("--config=eval", f"--workdir={tmp_path / 'w'}", f"--config.{field}={value}")
    assert main(["eval", *flags]) == 2
    assert capsys.readouterr().err == f"mcr eval: --config.{field} wants {wanted}, not {value!r}\n"


@pytest.mark.parametrize("command", ["eval", "verify"])
def test_a_workdir_that_is_not_there_is_named(tmp_path, capsys, command):
    assert main([command, f"--workdir={tmp_path / 'gone'}"]) == 2
    assert f"{tmp_path / 'gone'}: no such workdir; a new one needs" in capsys.readouterr().err


def test_a_disk_without_room_for_the_completions_is_told_before_the_first(call, small_disk):
    status, (line,) = call("sample", workdir=small_disk / "w", **{"sample.max_tokens": 20_000})
    assert status == 1 and "no space left for 4 answers" in line
    assert "--workdir" in line and "config.sample.n" in line
    assert not (small_disk / "w" / "ledger.sqlite").exists()


@pytest.mark.parametrize("field", ["stitch.model", "stitch.judge"])
def test_stitching_without_a_key_is_told_before_the_demo_builds(tmp_path, capsys, field):
    flags = ("--config.train.traces=stitched", f"--config.{field}=gemini")
    assert main(["demo", f"--workdir={tmp_path / 'w'}", *flags]) == 2
    assert "GEMINI_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "w" / "data").exists()


@pytest.fixture
def counts(monkeypatch):
    """How often a command parsed a completion, opened a ledger, read a manifest and asked git."""
    found = collections.Counter()

    def count(module, function, name, counts=lambda *args: True):
        original = getattr(module, function)

        def call(*args, **kwargs):
            found[name] += counts(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, call)

    count(completion, "parse", "completions")
    count(sqlite3, "connect", "ledger")
    count(workdirs, "read_json", "manifest", lambda path: path.name == "manifest.json")
    count(workdirs, "write_text", "written", lambda path, text: path.name == "manifest.json")
    count(subprocess, "run", "git", lambda call: call[0] == "git")
    workdirs.environment.cache_clear()
    return found


def test_a_whole_run_ends_with_results_and_reads_each_thing_once(
    call, tmp_path, tiny_folder, counts
):
    (tmp_path / "a model").symlink_to(tiny_folder)
    fields = {"model.folder": tmp_path / "a model", "score.resamples": 20}
    assert call("eval", **fields) == (0, [])
    assert (tmp_path / "results.json").exists() and (tmp_path / "report.html").exists()
    assert counts.pop("completions") == 4  # two of each of two cases
    assert counts.pop("written") == 5  # data, sample.base, sample, judge, eval
    assert max(counts.values()) == 1
    counts.clear()
    assert call("eval", **fields) == (0, [])  # nothing to do
    assert counts.keys() <= {"ledger", "manifest", "written"} and counts["written"] == 0


@pytest.mark.parametrize("config", ["sft_qwen2_5_7b", "sft_qwen2_5_7b:lora"])
def test_a_fine_tuning_config_takes_another_size_of_its_family(call, tmp_path, tiny_folder, config):
    """It gets as far as the dataset, which is missing."""
    folder = shutil.copytree(tiny_folder, tmp_path / "small")
    told = (folder / "config.json").read_text()
    (folder / "config.json").write_text(told.replace('"qwen3"', '"qwen2"'))
    fields = {"model.folder": folder, "data.data_dir": tmp_path / "nowhere"}
    status, (line,) = call("train", config=config, **fields)
    assert status == 1 and "mcr build" in line
