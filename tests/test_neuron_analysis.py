"""The notebook of the documentation, run in a real one on a small case: a neuron from end to end."""

import pyarrow.parquet as pq
from conftest import PROJECT, TINY_NETWORK, write_tiny_data
from PIL import Image

NOTEBOOK = PROJECT / "docs" / "neuron_analysis.ipynb"


def test_it_is_small():
    assert NOTEBOOK.stat().st_size < 10_000


def test_it_is_short_runs_and_shows_pictures_maps_words_and_the_figure(tmp_path, run_notebook):
    write_tiny_data(tmp_path / "data", shards=2)
    preprocess = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
    search = {"model": TINY_NETWORK, "layer": "mixed", "channels": [3], "preprocess": preprocess}
    search |= {"data": "data", "out": "run", "top_k": 6}
    parameters = f"search = {search!r}\nhow = dict(negative=True, diverse=2, size=32, steps=4)"
    code = run_notebook(NOTEBOOK, parameters, 22)
    results = [[one for one in cell.outputs if one.output_type == "execute_result"] for cell in code]
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
