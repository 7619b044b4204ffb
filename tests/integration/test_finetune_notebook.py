"""The fine-tuning notebook: clean as committed, and executed from its first cell to its last."""

import json
import pathlib
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "colab" / "finetune.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def executed(committed, mcr_env, tmp_path_factory):
    """Returns the output of each cell in a run with small settings, and its folder."""
    folder = tmp_path_factory.mktemp("finetune")
    notebook = nbformat.from_dict(committed)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    fast = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "MCR_FINETUNE_SMALL": "1"}
    client.execute(env={**mcr_env, **fast})
    return {cell.id: _shown(cell) for cell in notebook.cells}, folder


def _shown(cell) -> str:
    """All that a cell printed or displayed."""
    outputs = cell.get("outputs", [])
    pages = [o["data"].get("text/html", "") for o in outputs if "data" in o]
    return "".join(o["text"] for o in outputs if o.output_type == "stream") + "".join(pages)


def test_it_is_committed_without_outputs_for_the_kernel_python3(committed):
    nbformat.validate(committed)
    assert (committed.nbformat, committed.nbformat_minor) == (4, 5)
    assert committed.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in committed.cells]
    assert len(set(ids)) == len(ids)
    for cell in committed.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_it_says_first_that_it_is_fictional_and_not_for_patient_care(committed):
    first = " ".join(committed.cells[0].source.split())
    assert "fictional" in first and "not for patient care" in first


def test_a_command_that_fails_stops_it(committed, mcr_env):
    (magic,) = (cell for cell in committed.cells if cell.id == "commands")
    cells = [magic, nbformat.v4.new_code_cell("%mcr nonsense")]
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=60)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="exit status 2"):
        client.execute(env=mcr_env)


def test_where_no_clone_is_it_asks_for_the_repository_at_once(committed, mcr_env, tmp_path):
    (install,) = (cell for cell in nbformat.from_dict(committed).cells if cell.id == "install")
    forget = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'mcr_jax' not in str(f)]"
    cells = [nbformat.v4.new_code_cell(forget), install]
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells),
        timeout=60,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"'' is no clone of mcr"):
        client.execute(env=mcr_env)


def test_run_again_its_commands_find_nothing_to_do(executed, committed, mcr_env):
    _, folder = executed
    wanted = ("commands", "build", "train", "eval", "export")
    cells = [cell for cell in nbformat.from_dict(committed).cells if cell.id in wanted]
    again = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        again, timeout=120, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**mcr_env, "MCR_FINETUNE_SMALL": "1"})
    shown = {cell.id: _shown(cell) for cell in again.cells}
    told = {name: shown[name].count("nothing to do") for name in wanted[1:]}
    assert told == {"build": 1, "train": 1, "eval": 1, "export": 2}


def test_the_plan_says_what_a_step_needs_of_the_devices_that_were_named(executed):
    shown, _ = executed
    assert "1 x v5e" in shown["plan"] and "GB" in shown["plan"]


def test_the_loss_is_drawn_over_all_steps(executed):
    shown, folder = executed
    steps = [
        json.loads(line)["step"]
        for line in (folder / "runs" / "lora" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 8 and f"over {max(steps)} steps" in shown["curve"]
    training = re.search(r'<polyline points="([^"]*)"', shown["curve"])[1]
    assert len(training.split()) == len(set(steps))


def test_the_evaluation_ends_with_a_table_and_a_report(executed):
    shown, _ = executed
    assert all(word in shown["eval"] for word in ("accuracy@1", "verified recall", "base", "sft"))
    assert "<iframe" in shown["report"] and "&lt;html" in shown["report"]


def test_the_merged_export_and_the_adapters_are_one_model_that_differs_from_the_base(executed):
    shown, folder = executed
    told = json.loads((folder / "exports" / "adapters" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (8, 32)
    assert "merged holds the checkpoint of step 8, adapters merged" in shown["export"]
    assert "adapters holds the adapters of step 8" in shown["export"]
    assert (folder / "exports" / "merged" / "tokenizer.json").exists()
    same, other = map(float, re.findall(r"([\d.e-]+)$", shown["check"], re.MULTILINE))
    assert same < 1e-4 < other
