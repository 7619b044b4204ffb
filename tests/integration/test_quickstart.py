"""The quickstart notebook: clean as committed, and executed from its first cell to its last."""

import pathlib

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "colab" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def executed(committed, mcr_env, tmp_path_factory):
    """The notebook after a run on the small settings, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.from_dict(committed)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**mcr_env, "MCR_QUICKSTART_SMALL": "1"})
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


def test_it_ends_with_a_table_and_a_report(executed):
    shown, folder = executed
    assert all(word in shown["score"] for word in ("accuracy@1", "verified recall", "base", "sft"))
    workdir = folder / "runs" / "quickstart"
    assert "not for patient care" in (workdir / "report.html").read_text()
    assert "<iframe" in shown["report"] and "&lt;html" in shown["report"]
    assert str(workdir / "report.html") in shown["report-path"]


def test_it_shows_a_case_the_loss_and_a_completion_with_its_verdict(executed):
    shown, _ = executed
    assert all(field in shown["look"] for field in ("case_prompt", "final_diagnosis"))
    assert shown["curve"].count("<polyline") == 2 and "24 steps" in shown["curve"]
    assert "published diagnosis" in shown["verdict"]
    assert "diagnosis: " in shown["verdict"] and "reasons: {'found'" in shown["verdict"]
