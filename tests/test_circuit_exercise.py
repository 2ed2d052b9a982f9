"""The notebook of circuits, run in a real one on a small case: a filter from end to end."""

import pytest
from conftest import PROJECT, TINY_NETWORK, write_tiny_data

NOTEBOOK = PROJECT / "docs" / "circuit_exercise.ipynb"


def test_it_is_short_holds_no_results_and_runs(tmp_path, run_notebook):
    write_tiny_data(tmp_path / "data", shards=2)
    preprocess = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
    search = {"model": TINY_NETWORK, "layer": ["conv1", "mixed"], "preprocess": preprocess}
    search |= {"data": "data", "out": "run", "top_k": 6}
    code = run_notebook(NOTEBOOK, f"search = {search!r}\nlayer, filter = 'mixed', 3", 24)
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
