"""Configs and launch scripts are found by name; an unknown name lists all names."""

import pathlib

import pytest

from mcr_jax.cli import _shipped, launch
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.main import main
from mcr_jax.errors import UsageError

ROOT = pathlib.Path(__file__).parents[2]


def config(*argv: str):
    flags = Flags("train", "")
    flags.experiment()
    flags.parse(argv)
    return flags.config()


@pytest.mark.parametrize("spelt", [["--config=NAME"], ["--config", "NAME"], ["-config=NAME"]])
def test_a_shipped_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, spelt):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = (
        config(*(word.replace("NAME", name) for word in spelt), "--config.seed=3")
        for name in ("sft_qwen2_5_7b:lora", f"{ROOT}/configs/sft_qwen2_5_7b.py:lora")
    )
    assert by_name == by_path and by_name.lora.rank and by_name.seed == 3


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "from mcr_jax import config\ndef get_config():\n    c = config.default()\n    c.seed = 9\n"
    )
    pathlib.Path("demo").write_text(code + "    return c\n")
    assert config("--config=demo").seed == 9


@pytest.mark.parametrize("given", ["configs/sft_qwen2_5_7b.py", "sft_qwen2_5_7", "mine.py", "sft"])
def test_an_unknown_config_lists_the_shipped_ones(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        config(f"--config={given}")
    assert str(refused.value).startswith(f"{given}: no such config file")
    assert all(name in str(refused.value) for name in _shipped.configs())
    assert ("did you mean sft_qwen2_5_7b?" in str(refused.value)) == ("qwen" in given)


def test_configs_shows_every_name_with_one_line(capsys):
    main(["configs"])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown.keys() == {path.stem for path in (ROOT / "configs").glob("[!_]*.py")}
    assert all(what.endswith(".") for what in shown.values())


def test_launch_names_every_script_that_starts_a_command(capsys):
    main(["launch", "--help"])
    shown = capsys.readouterr().out
    for path in (*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")):
        starts = "-- COMMAND..." in path.read_text() or path.suffix == ".sbatch"
        assert (f"  {path.stem} " in shown) == starts, path.name


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["tpu_vm", "--name=n", "--", "mcr"], ["bash", "tpu_vm.sh", "--name=n", "--", "mcr"]),
        (["slurm_gpu", "--nodes=4", "--", "mcr", "--", "x"], None),
        (["slurm_gpu", "--dry-run", "x"], ["bash", "slurm_gpu.sbatch", "--dry-run", "x"]),
        (["slurm_gpu", "--help"], ["bash", "slurm_gpu.sbatch", "--help"]),
    ],
    ids=str,
)
def test_a_script_gets_its_flags_and_slurm_s_own_stand_before_it(argv, line):
    line = line or ["sbatch", "--nodes=4", "slurm_gpu.sbatch", "mcr", "--", "x"]
    made = launch.command(argv[0], argv[1:])
    made = [pathlib.Path(word).name if "/" in word else word for word in made]
    assert made == line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "which script? mcr launch NAME -- COMMAND; shipped are gke_xpk"),
        (["--name=n"], "which script?"),
        (["tpuvm"], "no launch script 'tpuvm'; did you mean tpu_vm?"),
        (["lib"], "no launch script 'lib'"),
        (["slurm_gpu", "--nodes=4"], "no command to run: it comes last, after --"),
    ],
    ids=str,
)
def test_a_wrong_call_of_launch_is_one_line(capsys, argv, told):
    assert main(["launch", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
