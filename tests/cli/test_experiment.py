"""Calls record the config of their workdir, and later calls use it."""

import os
import pathlib
import shutil

import pytest

from mcr_jax import config as configs
from mcr_jax.cli.main import main
from mcr_jax.config_fields import FIELDS, FREEZING_ARTIFACTS, RESUME_MUTABLE
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, opened
from mcr_jax.workdir import Workdir

CONFIG = "from mcr_jax import config\n\n\ndef get_config():\n    return config.default()\n"


@pytest.fixture(params=["new", "worked in"])
def workdir(request, tmp_path) -> Workdir:
    """One without and one with a config, and results of long ago, from a call before."""
    made = Workdir(tmp_path / "w")
    if request.param == "worked in":
        with experiment(made, n=3).working():
            made.write_json(made.results, {})
        os.utime(made.results, (1, 1))
    return made


def experiment(workdir, n: int) -> Experiment:
    config = configs.default()
    config.sample.n = n
    return Experiment(config.lock(), workdir)


def recorded(workdir) -> bytes | None:
    return workdir.config.read_bytes() if workdir.config.exists() else None


@pytest.mark.parametrize("fault", [McrError, UsageError])
def test_a_call_that_fails_before_it_has_made_anything_leaves_the_config_of_before(workdir, fault):
    before = recorded(workdir)
    with pytest.raises(fault, match="refused"), experiment(workdir, n=7).working():
        assert configs.load(workdir.config).sample.n == 7
        workdir.note("data", {"cases": 2})
        raise fault("refused")
    assert recorded(workdir) == before
    with experiment(workdir, n=5).working():
        pass
    assert configs.load(workdir.config).sample.n == 5


@pytest.mark.parametrize("name", ["results.json", "checkpoints/4/params"])
def test_a_call_that_has_made_something_keeps_its_config_though_it_fails(workdir, name):
    with pytest.raises(McrError, match="later"), experiment(workdir, n=7).working():
        made = workdir.path / name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("fictional work")
        raise McrError("later")
    assert configs.load(workdir.config).sample.n == 7


def test_a_call_that_only_stated_in_the_ledger_what_it_wants_has_made_nothing(workdir):
    """For example a call that a service refuses: a wrong model, a bad key."""
    before = recorded(workdir)
    with pytest.raises(McrError, match="refused"), experiment(workdir, n=7).working():
        workdir.note("judge", {"name": "gemini:none"})
        with opened(workdir) as ledger:
            row = RowKey(stage="reasons", case="c", model="sft", sample=0, judge="gemini:none")
            ledger.declare(Scope("reasons", "sft", "gemini:none"), {row: "d"})
        raise McrError("refused")
    assert recorded(workdir) == before
    assert not workdir.manifest.exists()
    other = experiment(workdir, n=5)
    with other.config.unlocked():
        other.config.seed = 9  # nothing rests on the seed of the failed call
    with Experiment(other.config, workdir).working():
        pass


def test_a_call_that_got_one_answer_keeps_its_config_though_it_fails(workdir):
    with pytest.raises(McrError, match="later"), experiment(workdir, n=7).working():
        with opened(workdir) as ledger:
            row = RowKey(stage="reasons", case="c", model="sft", sample=0, judge="gemini:m")
            ledger.write(Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK))
        raise McrError("later")
    assert configs.load(workdir.config).sample.n == 7


def test_reading_a_ledger_that_a_killed_call_left_open_makes_nothing(workdir, tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as killed:
        killed.declare(Scope("stitch", "base"), {})
        for file in tmp_path.glob("ledger.sqlite*"):
            shutil.copy(file, workdir.path)
    before = recorded(workdir)
    with pytest.raises(UsageError), experiment(workdir, n=7).working():
        with opened(workdir, readonly=True) as ledger:
            assert ledger.count() == 0
        raise UsageError("refused")
    assert recorded(workdir) == before


def test_a_call_that_was_stopped_keeps_its_config(workdir):
    with pytest.raises(Stopped), experiment(workdir, n=7).working():
        raise Stopped("call again to go on")
    assert configs.load(workdir.config).sample.n == 7


def test_one_that_does_not_write_takes_away_no_config_of_the_one_that_does(workdir):
    peer = Workdir(workdir.path, writes=False)
    with pytest.raises(UsageError), experiment(peer, n=7).working():
        with experiment(workdir, n=7).working():
            pass
        raise UsageError("refused")
    assert configs.load(workdir.config).sample.n == 7


def make(workdir: Workdir, artifact: str) -> None:
    stage = {"traces": "stitch", "results": "sample"}.get(artifact)
    if stage:
        with Ledger(workdir.ledger) as ledger:
            row = RowKey(stage=stage, case="c", model="base", sample=0, judge="")
            ledger.declare(Scope(stage, "base"), {row: "d"})
            ledger.write(Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK))
    else:
        {"dataset": workdir.data, "tokenizer": workdir.tokenizer}[artifact].mkdir()


@pytest.mark.parametrize("artifact", FREEZING_ARTIFACTS)
def test_an_artifact_freezes_its_fields_and_those_of_the_artifacts_before_it(tmp_path, artifact):
    workdir = Workdir(tmp_path / "w")
    with experiment(workdir, n=7).working():
        make(workdir, artifact)
    order = (*FREEZING_ARTIFACTS, RESUME_MUTABLE)
    for name, field in FIELDS.items():
        config, kind = configs.default(), type(field.default)
        other = {str: "other", tuple: ("other",), bool: not field.default}.get(kind)
        other = field.default + 1 if other is None else other
        config.update_from_flattened_dict({name: other})
        if order.index(field.frozen) > order.index(artifact):
            Experiment(config.lock(), workdir)
            continue
        with pytest.raises(UsageError) as refused:
            Experiment(config.lock(), workdir)
        assert f" was made with {name}={field.default!r}, this call says " in str(refused.value)


@pytest.mark.parametrize("command", ["sample", "eval", "demo"])
def test_a_model_that_is_none_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("plain.py").write_text(CONFIG)
    flags = ["--config=plain.py", "--workdir=w"]
    assert main([command, *flags, "--config.sample.models=base,tuned"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mcr {command}: there is no model 'tuned': name base, sft, ")
    assert [path.name for path in pathlib.Path("w").iterdir()] == [".lock"]
