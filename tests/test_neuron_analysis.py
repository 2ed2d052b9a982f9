"""The notebook of the documentation, run in a real one on a small case: a neuron from end to end."""

import os
import sys
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, TINY_NETWORK, write_tiny_data
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = PROJECT / "docs" / "neuron_analysis.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_short_and_holds_no_results(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 22
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert NOTEBOOK.stat().st_size < 10_000


def test_it_runs_and_shows_pictures_maps_words_and_the_figure(notebook, ray_head, tmp_path, monkeypatch):
    write_tiny_data(tmp_path / "data", shards=2)
    preprocess = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
    search = {"model": TINY_NETWORK, "layer": "mixed", "channels": [3], "preprocess": preprocess}
    search |= {"data": "data", "out": "run", "top_k": 6}
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"search = {search!r}\nhow = dict(negative=True, diverse=2, size=32, steps=4)"
    # The package beside these tests, and the commands of this environment, whichever are installed.
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_ADDRESS", ray_head["address"])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    results = [
        [one for one in cell.outputs if one.output_type == "execute_result"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    of_neuron, of_pictures, of_images, of_map, of_figure = (one[0].data for one in results if one)
    assert of_neuron["text/html"].count("data:image/") == 4 + 6
    rows = pq.read_table(tmp_path / "run" / "visualizations" / "visualizations.parquet").to_pylist()
    assert [row["objective"] for row in rows] == ["channel", "channel-", "diverse-1", "diverse-2"]
    for row in rows:
        assert row["objective"] in of_pictures["text/html"]
    assert of_images["text/plain"].count("[") == 1 + 5
    assert of_map["text/html"].count("<th>") == 2 * 16 + 1
    assert of_figure["image/png"]
    assert Image.open(tmp_path / "neuron.png").width == 2100
