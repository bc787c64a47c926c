"""The notebook runs on a finished sweep as it stands, and finds what the sweep found."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import FinishedSweep

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "compare.ipynb"


@pytest.mark.xdist_group("finished_sweep")
@pytest.mark.filterwarnings("default")  # Jupyter's own, about event loops and file modes
def test_the_notebook_reads_a_sweep_from_mlflow(finished_sweep: FinishedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSWEEP_TRACKING_URI", f"sqlite:///{finished_sweep.folder}/mlflow.db")
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep the checked-in notebook free of outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(finished_sweep.folder)}}).execute()
    table = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))
    assert "0.003" in table
    assert table.count("image/png") == 2
