"""The environment with inspect_ai and verifiers: `make inspect`, or MCR_INSPECT_PYTHON."""

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = pathlib.Path(
    os.environ.get("MCR_INSPECT_PYTHON", ROOT / ".venv-inspect" / "bin" / "python")
)


def tool(name: str) -> str:
    """Returns the path of a command of the environment."""
    if not PYTHON.exists():
        pytest.skip("no environment with inspect_ai and verifiers: make inspect")
    return str(PYTHON.with_name(name))


def run(script: str, out: pathlib.Path, *arguments: Any, **environment: str) -> Any:
    """Runs tests/adapters/SCRIPT with these arguments; returns the JSON that it wrote to `out`."""
    call = [tool(PYTHON.name), ROOT / "tests" / "adapters" / script, *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=500, env=env, cwd=out.parent
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(out.read_text(encoding="utf-8"))
