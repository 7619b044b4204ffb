"""Fixtures: real `mcr` processes on real files, and one finished tiny demo."""

import os
import pathlib
import shutil

import pytest
from processes import TINY, Finished, Here, Mcr


def _environment(empty: pathlib.Path) -> dict[str, str]:
    """Returns a user's environment with the compilation cache of the test run."""
    dropped = ("XLA_FLAGS", "GEMINI_", "GOOGLE_", "TFDS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    flags = "--xla_backend_optimization_level=0"  # compiled fast rather than to be fast
    return {**env, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TFDS_DATA_DIR": str(empty)}


@pytest.fixture(scope="session")
def mcr_env(tmp_path_factory) -> dict[str, str]:
    """The environment of the processes: no key, one device, no prepared datasets."""
    return _environment(tmp_path_factory.mktemp("no_tfds_data"))


@pytest.fixture
def mcr(mcr_env, tmp_path) -> Mcr:
    """`mcr` in a folder of this test."""
    return Mcr(tmp_path, mcr_env)


@pytest.fixture
def here(mcr_env, tmp_path) -> Here:
    """Runs `mcr` in the test's own process."""
    return Here(tmp_path, mcr_env)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The flags that make a demo tiny."""
    return tuple(f"--config.{field}={value}" for field, value in TINY.items())


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> pathlib.Path:
    """The tiny demo as a config file, for the commands that have no config of their own."""
    path = tmp_path_factory.mktemp("configs") / "tiny_demo.py"
    path.write_text(
        "from mcr_jax.configs import demo\n\n\n"
        "def get_config():\n    c = demo.get_config()\n"
        + "".join(f"    c.{field} = {value!r}\n" for field, value in TINY.items())
        + "    return c\n"
    )
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, mcr_env, tiny) -> Finished:
    """The shared finished demo; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    stdout = Mcr(folder, mcr_env).ok("demo", f"--workdir={folder / 'demo'}", *tiny)
    return Finished(folder / "demo", stdout)


@pytest.fixture
def workdir(finished, tmp_path) -> pathlib.Path:
    """A copy of the finished demo that a test may change."""
    return pathlib.Path(shutil.copytree(finished.path, tmp_path / "demo", symlinks=True))
