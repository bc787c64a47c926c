"""The notebooks run as they stand: one compares a finished sweep, one goes from rows to a trained adapter."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import FinishedSweep

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def executed(name: str, folder: Path) -> Any:
    """A checked-in notebook after it has run in a folder."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep the checked-in notebook free of outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: Any) -> str:
    return "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.xdist_group("finished_sweep")
@pytest.mark.filterwarnings("default")  # Jupyter's own, about event loops and file modes
def test_the_notebook_reads_a_sweep_from_mlflow(finished_sweep: FinishedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSWEEP_TRACKING_URI", f"sqlite:///{finished_sweep.folder}/mlflow.db")
    table = outputs(executed("compare.ipynb", finished_sweep.folder))
    assert "0.003" in table
    assert table.count("image/png") == 2


@pytest.mark.filterwarnings("default")
def test_from_rows_to_a_trained_adapter(tmp_path: Path) -> None:
    notebook = executed("sweep.ipynb", tmp_path)
    shown = outputs(notebook)
    assert shown.count("image/png") == 2
    assert "5/5" in shown, "the live table stays"
    assert "learning_rate: 0.01" in shown
    assert (tmp_path / "outputs" / "sums-run" / "adapter" / "adapter_model.safetensors").is_file()
