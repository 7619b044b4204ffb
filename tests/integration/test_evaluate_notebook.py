"""The evaluation notebook, executed with a Gemini on loopback; common cells of all notebooks."""

import json
import pathlib

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def source(notebook, cell_id: str) -> str:
    (found,) = (cell.source for cell in notebook.cells if cell.id == cell_id)
    return found


def test_a_model_folder_is_measured_with_gemini_as_the_judge(mcr_env, tmp_path, gemini):
    notebook = read(FOLDER / "evaluate.ipynb")
    keys = {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
    client.execute(env={**mcr_env, **keys})
    shown = {
        cell.id: "".join(o.get("text", "") or str(o.get("data", "")) for o in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "accuracy@1" in shown["eval"] and "<iframe" in shown["report"]
    assert "agrees with the ledger" in shown["check"]
    results = json.loads((tmp_path / "runs" / "evaluate" / "results.json").read_text())
    assert results["judge"]["name"].startswith("gemini:") and gemini.calls
    assert list(results["models"]) == ["base"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_says_first_what_it_is_not(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert all(not c.outputs for c in notebook.cells if c.cell_type == "code")
    first = " ".join(notebook.cells[0].source.split())
    assert "fictional" in first and "not for patient care" in first
    assert notebook.metadata.kernelspec.name == "python3"


def test_all_notebooks_are_installed_by_the_same_lines():
    for cell_id in ("install", "install-about"):
        assert len({source(read(path), cell_id) for path in NOTEBOOKS}) == 1
