"""Real `mcr` processes on real files, and one tiny finished demo that all of these tests share."""

import os
import pathlib
import shutil

import pytest
from processes import TINY, Finished, Mcr


def _environment(cache: pathlib.Path) -> dict[str, str]:
    dropped = ("XLA_FLAGS", "GEMINI_", "GOOGLE_", "TFDS_", "JAX_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {
        **env,
        "JAX_PLATFORMS": "cpu",
        # What one process has compiled the next ones need not: most of a tiny demo is compilation.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TFDS_DATA_DIR": str(cache / "no_tfds_data_here"),
    }


@pytest.fixture(scope="session")
def mcr_env(tmp_path_factory) -> dict[str, str]:
    """The environment of the processes: no key, one device, a compilation cache of this session."""
    return _environment(tmp_path_factory.mktemp("jax_cache"))


@pytest.fixture
def mcr(mcr_env, tmp_path) -> Mcr:
    """`mcr` in a folder of this test."""
    return Mcr(tmp_path, mcr_env)


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
