"""The notebooks of examples/ run from their first cell to the last."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # whether or not the package is installed
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what it prints is made, not kept
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("novel classes" in text for text in printed)
    table = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert "logistic_regression" in table and "nearest_mean" in table
