"""Samples from a server of chat completions that is not ours: `transformers serve`."""

import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import pytest

from mcr_jax.cli.main import main
from mcr_jax.generate.ledger import Ledger, Scope

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(
    os.environ.get("MCR_REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)


@pytest.fixture(scope="module")
def served(tiny_folder):
    """URL of a server of `tiny_folder`, and the name of its model."""
    if not PYTHON.exists():
        pytest.skip("no reference environment: make reference")
    found = [PYTHON, "-c", "import fastapi, uvicorn, transformers"]
    if subprocess.run(found, capture_output=True).returncode:
        pytest.skip("the reference environment has no fastapi and uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = [PYTHON.with_name("transformers"), "serve", str(tiny_folder)]
    call += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            _await(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1", str(tiny_folder)
        finally:
            process.terminate()


def _await(url, process):
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_a_model_behind_transformers_serve_is_sampled_and_resumed(
    served, clinic_data, tmp_path, monkeypatch, capfd
):
    url, model = served
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fields = {
        "data.data_dir": clinic_data,
        "data.eval_cases": 2,
        "sample.models": f"served=openai:{model}",
        "sample.n": 2,
        "sample.max_tokens": 8,
        "judge.name": "offline",
        "prompt": "diagnose_brief",
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    call = ["sample", "--config=eval", f"--workdir={tmp_path}", *flags]
    assert main(call) == 0, capfd.readouterr().err
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        answers = list(ledger.answers(Scope("sample", "served")).values())
    assert len(answers) == 4
    assert all(a.outcome in ("OK", "TRUNCATED") and a.text and a.usage.prompt for a in answers)
    assert main(call) == 0
    assert "4 completions, nothing to do" in capfd.readouterr().out
