"""Every path of a user may begin with ~; an unknown user is an error of one line."""

import pathlib

import pytest

from mcr_jax import prompts
from mcr_jax.cli.main import main
from mcr_jax.errors import UsageError
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.paths import expanded, local_folder
from mcr_jax.workdir import Workdir, storage_path

CONFIG = "from mcr_jax import config\n\n\ndef get_config():\n    return config.default()\n"
NOBODY = "~no-such-user/x"
CALLS = [
    ("verify", f"--workdir={NOBODY}"),
    ("train", "--config=plain.py", f"--workdir={NOBODY}"),
    ("build", f"--source={NOBODY}"),
    ("build", f"--source=good.jsonl,{NOBODY}"),
    ("build", "--source=good.jsonl", f"--data_dir={NOBODY}"),
    ("build", "--source=good.jsonl", f"--traces={NOBODY}"),
    ("export", "--workdir=w", f"--out={NOBODY}"),
    ("build", "--config=plain.py", "--workdir=w", f"--config.data.source={NOBODY}"),
    ("report", "--config=plain.py", "--workdir=w", f"--config.data.data_dir={NOBODY}"),
    ("sample", "--config=plain.py", "--workdir=w", f"--config.model.folder={NOBODY}"),
    ("sample", "--config=plain.py", "--workdir=w", f"--config.tokenizer.path={NOBODY}"),
    ("train", "--config=plain.py", "--plan=8 x v5e", f"--config.model.folder={NOBODY}"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("plain.py").write_text(CONFIG)
    pathlib.Path("good.jsonl").write_text("")
    return tmp_path


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_the_home_of_no_user_is_one_line_and_status_2(call, capsys):
    assert main(call) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no home folder of ~no-such-user" in line
    assert not pathlib.Path("~no-such-user").exists()


@pytest.mark.parametrize(
    "use", [lambda path: prompts.load("diagnose", path), newest_step, storage_path, Workdir]
)
def test_prompts_and_checkpoints_in_the_home_of_no_user_are_refused(use):
    with pytest.raises(UsageError, match=r"there is no home folder of ~no-such-user"):
        use(NOBODY)


def test_a_home_folder_is_found(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    assert expanded("~/runs") == local_folder(pathlib.Path("~/runs")) == folder / "runs"
    assert expanded("runs/~/x") == pathlib.Path("runs/~/x")
    assert main(["verify", "--workdir=~/runs/one"]) == 2  # no config yet
    assert not (folder / "~").exists()


def test_an_address_is_no_local_folder():
    for address in ("gs://b/run", "gs:/b/run"):
        with pytest.raises(UsageError, match="gs://b/run is not a local folder"):
            local_folder(address)
