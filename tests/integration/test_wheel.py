"""A wheel built from the sdist works in a clean environment and an empty folder.

The dependencies come from the package registry, to find one that is used but not declared: the
environment of the tests has more packages.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

from mcr_jax.cases import write_jsonl

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
UNREACHABLE = ("Temporary failure in name resolution", "NewConnectionError", "ConnectTimeout")
BUILD = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_sdist(sys.argv[1])\n"


class Clean:
    """An environment of its own, and empty folders to work in."""

    def __init__(self, path: pathlib.Path, env: dict[str, str]):
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        self.bin = path / "bin"
        kept = {name: value for name, value in env.items() if not name.startswith("PYTHON")}
        home = path / "home"
        home.mkdir()
        self.env = {
            **kept,
            "HOME": str(home),
            "PATH": f"{self.bin}{os.pathsep}{env['PATH']}",
            "TFDS_DATA_DIR": str(home / "tfds"),
        }

    def run(self, folder: pathlib.Path, *command: object, **env: str) -> str:
        """Runs a command in `folder`, must succeed; returns what it printed."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *what: object) -> None:
        """Installs with pip; skips the test where the registry is out of reach."""
        pip = [self.bin / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        env = {**self.env, "HOME": os.environ["HOME"]}  # for pip's cache
        done = subprocess.run([*pip, *what], env=env, capture_output=True, text=True)
        if any(sign in done.stderr for sign in UNREACHABLE):
            pytest.skip("no package registry is within reach")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clean(tmp_path_factory, mcr_env):
    return Clean(tmp_path_factory.mktemp("clean"), mcr_env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, mcr_env):
    """The wheel that the sdist gives, so that the sdist is whole, too."""
    folder = tmp_path_factory.mktemp("wheel")
    builder = Clean(folder / "builder", mcr_env)
    builder.install("setuptools>=77")
    tree = folder / "tree"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "tests", "site")
    shutil.copytree(ROOT, tree, ignore=skip)
    builder.run(tree, builder.bin / "python", "-c", BUILD, folder)
    (sdist,) = folder.glob("mcr_jax-*.tar.gz")
    pip = [builder.bin / "python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    builder.run(folder, *pip, "-w", folder, sdist)
    (made,) = folder.glob("mcr_jax-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(clean, wheel):
    """The environment with the wheel in it and all that it asks for."""
    clean.install("-c", ROOT / "constraints.txt", f"{wheel}[tf]")
    return clean


def test_configs_scripts_and_benches_are_found_by_name_outside_a_checkout(installed, tmp_path):
    listed = installed.run(tmp_path, "mcr", "configs")
    assert {line.split()[0] for line in listed.splitlines()} == {
        path.stem for path in (ROOT / "configs").glob("[!_]*.py")
    }
    plan = installed.run(tmp_path, "mcr", "train", "--config=sft_qwen2_5_7b:lora", "--plan=8 x v5e")
    assert "SFT of Qwen2.5, LoRA" in plan
    shown = installed.run(
        tmp_path, "mcr", "launch", "local_processes", "--processes=2", "--", "sh", "-c", "echo $PWD"
    )
    assert sorted(shown.splitlines()) == [f"[{number}] {tmp_path}" for number in (0, 1)]
    assert "--cases" in installed.run(tmp_path, "python", "-m", "mcr_jax.bench.report", "--help")
    where = installed.run(tmp_path, "python", "-c", "import mcr_jax; print(mcr_jax.__file__)")
    assert pathlib.Path(where.strip()).is_relative_to(installed.bin.parent)


# Of Colab's published list (June 2026), what mcr-jax and its dependencies might replace.
COLAB = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "numpy": "2.0.2",
    "protobuf": "5.29.6",
    "flax": "0.11.2",
    "tensorflow": "2.20.0",
    "tensorflow-datasets": "4.9.10",
    "google-genai": "1.68.0",
    "scipy": "1.16.3",
    "pyarrow": "18.1.0",
    "ml_dtypes": "0.5.4",
    "sentencepiece": "0.2.1",
}


def test_a_bare_colab_keeps_its_numpy_tensorflow_and_protobuf_and_gets_no_older_jax(
    wheel, tmp_path, mcr_env
):
    """The install cell of the notebooks, with pip planning what it would install."""
    colab = Clean(tmp_path / "colab", mcr_env)
    (site,) = (tmp_path / "colab").glob("lib/python*/site-packages")
    for name, version in COLAB.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "RECORD").touch()
    (tmp_path / "here").mkdir()
    shutil.copy(wheel, tmp_path / "here")
    cells = json.loads((ROOT / "colab" / "evaluate.ipynb").read_text())["cells"]
    (install,) = ("".join(cell["source"]) for cell in cells if cell["id"] == "install")
    pip, rest = install.split("    %pip ")[0], install.split("    %pip ")[1].partition("\n")[0]
    run = "import shlex, sys\nsubprocess.run([sys.executable, '-m', 'pip', *shlex.split(call)])"
    (tmp_path / "cell.py").write_text(f"{pip}    call = f{rest!r}\n{run}\n")
    plan = {"PIP_DRY_RUN": "1", "PIP_REPORT": str(tmp_path / "report.json")}
    colab.run(tmp_path / "here", colab.bin / "python", tmp_path / "cell.py", **plan)
    if not (tmp_path / "report.json").exists():
        pytest.skip("no package registry is within reach")
    planned = json.loads((tmp_path / "report.json").read_text())["install"]
    versions = {item["metadata"]["name"]: item["metadata"]["version"] for item in planned}
    assert not {"numpy", "tensorflow", "protobuf"} & versions.keys()
    assert versions["mcr-jax"] and tuple(map(int, versions["jax"].split("."))) >= (0, 7, 2)


def test_a_tpu_installs_the_wheel_that_was_installed_here(installed, wheel, tmp_path):
    """Without a checkout, launch scripts send the package itself."""
    package = installed.run(tmp_path, "python", "-c", "import mcr_jax; print(mcr_jax.__path__[0])")
    pack = pathlib.Path(package.strip()) / "launch" / "pack.sh"
    installed.run(tmp_path, "bash", pack, tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        archive.extractall(tmp_path / "vm", filter="data")
    (again,) = (tmp_path / "vm").glob("*.whl")
    assert again.name == wheel.name
    python = installed.bin / "python"
    target = ("--no-deps", "--target", tmp_path / "there", again)
    installed.run(tmp_path, python, "-m", "pip", "install", "-q", *target)
    here, there = pathlib.Path(package.strip()), tmp_path / "there" / "mcr_jax"
    for path in here.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = there / path.relative_to(here)
            assert copy.read_bytes() == path.read_bytes()
            assert os.access(copy, os.X_OK) == os.access(path, os.X_OK)


def test_the_demo_runs_from_an_empty_folder(installed, tmp_path):
    said = installed.run(tmp_path, "mcr", "demo", "--config.train.steps=20")
    assert "accuracy@1" in said and (tmp_path / "runs" / "demo" / "report.html").exists()


def test_what_is_built_is_loaded_by_the_lines_that_readme_shows(installed, tmp_path, clinic_cases):
    write_jsonl([case for cases in clinic_cases.values() for case in cases], tmp_path / "c.jsonl")
    data = {"TFDS_DATA_DIR": str(tmp_path / "tfds")}
    installed.run(tmp_path, "mcr", "build", "--source=c.jsonl", **data)
    lines = (
        "import mcr_jax.tfds, tensorflow_datasets as tfds\n"
        "print(len(tfds.load('medcasereasoning', split='test')))\n"
        "print(len(tfds.data_source('medcasereasoning', split='train')))\n"
    )
    shown = installed.run(tmp_path, "python", "-c", lines, **data)
    counts = [len(clinic_cases[split]) for split in ("test", "train")]
    assert list(map(int, shown.split())) == counts


def test_a_model_you_have_is_measured_in_four_commands(
    clean, wheel, tmp_path, tiny_folder, gemini, hub
):
    """pip install, hf download, mcr build, mcr eval; a copy stands for the second one."""
    services = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    services |= {"GOOGLE_GEMINI_BASE_URL": gemini.url, "GEMINI_API_KEY": gemini.key}
    services |= {"TFDS_DATA_DIR": str(tmp_path / "tfds"), "HF_HOME": str(tmp_path / "hf")}
    clean.install("-c", ROOT / "constraints.txt", wheel)
    clean.run(tmp_path, "cp", "-r", tiny_folder, "model")
    assert "to load it in Python" in clean.run(tmp_path, "mcr", "build", **services)
    quick = ("--config.sample.n=2", "--config.sample.max_tokens=8", "--config.sample.slots=8")
    call = ("--config=eval", "--config.model.folder=model", "--workdir=runs/mine", *quick)
    said = clean.run(tmp_path, "mcr", "eval", *call, **services)
    assert "accuracy@1" in said
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert list(results["models"]) == ["base"] and results["judge"]["name"].startswith("gemini:")
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
