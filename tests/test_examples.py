"""The notebooks in examples/ run from the first cell to the last, and the released extractors compute features."""

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbclient import NotebookClient

import lowshot
from lowshot.data.lineage import lineage_of

RELEASED = sorted((ROOT / "examples" / "extractors").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # works with and without an installed package
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not stored
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("novel classes" in text for text in printed)
    table = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert "logistic_regression" in table and "nearest_mean" in table


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_released_extractor(path):
    """It is small, says what it has seen, and computes features."""
    assert (path / "model.safetensors").stat().st_size <= 2e6
    extractor = lowshot.open_extractor(path)
    side, n_channels = extractor.config.image_size, extractor.config.n_channels
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, n_channels)).astype(np.uint8)
    features = lowshot.embed(extractor, images)
    assert features.shape == (4, 160) and np.isfinite(features).all() and len(np.unique(features, axis=0)) == 4
    seen = lineage_of(path)
    assert seen.labelled and not seen.unknown
