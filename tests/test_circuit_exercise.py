"""The notebook of circuits, run in a real one on a small case: a filter from end to end."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import PROJECT, TINY_NETWORK, write_tiny_data
from nbclient import NotebookClient

NOTEBOOK = PROJECT / "docs" / "circuit_exercise.ipynb"


def test_it_is_short_holds_no_results_and_runs(ray_head, tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len([line for cell in code for line in cell.source.splitlines() if line.strip()]) <= 24
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    write_tiny_data(tmp_path / "data", shards=2)
    preprocess = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
    search = {"model": TINY_NETWORK, "layer": ["conv1", "mixed"], "preprocess": preprocess}
    search |= {"data": "data", "out": "run", "top_k": 6}
    [parameters] = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"search = {search!r}\nlayer, filter = 'mixed', 3"
    # The package beside these tests, and the commands of this environment, whichever are installed.
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_ADDRESS", ray_head["address"])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    all_outputs = [one for cell in code for one in cell.outputs]
    results = [one.data for one in all_outputs if one.output_type == "execute_result"]
    channel, classes, circuit, inputs, tested, whole = results
    # Beside its exemplars the picture that was made for it.
    assert channel["text/html"].count("data:image/") == 7
    assert classes["text/html"].count("<tr") > 1
    assert circuit["text/html"].count("data:image/png") == 8
    assert inputs["text/html"].count("<tr") == 1 + 8
    assert sum(one.output_type == "display_data" and "image/png" in one.data for one in all_outputs) == 8
    assert "'removed': [" in tested["text/plain"]
    left, right = (float(number) for number in whole["text/plain"].strip("()").split(", "))
    assert left == pytest.approx(right, rel=1e-4)
