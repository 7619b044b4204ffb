"""Commands on a tiny model and a tiny dataset, in the process of the test."""

import pytest

from mcr_jax.cli.main import main

SMALL = {
    "data.eval_cases": 2,
    "sample.n": 2,
    "sample.max_tokens": 8,
    "sample.prompt_tokens": 400,
    "sample.slots": 8,
    "prompt": "diagnose_brief",
    "judge.name": "offline",
}


@pytest.fixture
def call(tmp_path, tiny_folder, clinic_data, capsys):
    """Runs a command on a tiny model folder; returns its status and its lines on stderr.

    `out` and `model` are flags, every other name a field of the config. `call.out` is what the last
    command wrote on stdout.
    """

    def run(command: str, workdir=None, config="eval", **fields):
        fields = {"model.folder": tiny_folder, "data.data_dir": clinic_data, **SMALL, **fields}
        own = ("out", "model")
        flags = [f"--{'' if n in own else 'config.'}{n}={value}" for n, value in fields.items()]
        status = main([command, f"--config={config}", f"--workdir={workdir or tmp_path}", *flags])
        run.out, err = capsys.readouterr()
        return status, err.splitlines()

    return run
