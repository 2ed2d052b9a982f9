"""The notebook of real and generated images, run in a real one on some of its digits."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import PROJECT

NOTEBOOK = PROJECT / "docs" / "real_and_generated.ipynb"

pytest.importorskip("sklearn")


def test_it_is_short_holds_no_results_and_runs(tmp_path, run_notebook):
    parameters = "images, shards, steps, layer = 800, 4, 60, 'block3'\nbadly, never, method = (3, 8), 7, 'pca'"
    code = run_notebook(NOTEBOOK, parameters, 57)
    layer = pd.read_parquet(tmp_path / "compared" / "layers.parquet").iloc[0]
    classes = pd.read_parquet(tmp_path / "compared" / "classes.parquet").set_index("class_name")
    asked = classes.index != "7"
    assert classes.images_a.sum() == layer.images_a == 400
    assert (classes.images_a == classes.images_b).tolist() == asked.tolist()
    assert classes.images_b["7"] == 0
    # The class that was never generated is the least covered, and those that were mixed up land in one another.
    assert classes.coverage["7"] < classes.coverage[asked].min() - 0.2
    faithful = classes.index.isin(["0", "2", "4", "5", "6", "9"])
    assert classes.fidelity[["3", "8"]].mean() < classes.fidelity[faithful].min() - 0.1
    assert classes.frechet[["3", "8"]].max() > classes.frechet[faithful].max()
    assert 0 < layer.frechet_at_infinity < layer.frechet
    assert layer.frechet_low <= layer.frechet <= layer.frechet_high
    points = pd.read_parquet(tmp_path / "map" / "map.parquet")
    assert points["set"].value_counts().to_dict() == {"real": layer.images_a, "generated": layer.images_b}
    kinds = ("execute_result", "display_data")
    outputs = [one.data for cell in code for one in cell.outputs if one.output_type in kinds]
    of_layer, of_classes, of_channels, of_map, *links = outputs
    assert f"{layer.frechet_at_infinity:.6f}" in of_layer["text/html"]
    assert of_classes["text/html"].index("<th>7</th>") < min(
        of_classes["text/html"].index(f"<th>{name}</th>") for name in classes.index[asked]
    )
    assert of_channels["text/html"].count("<tr") == 1 + 5
    assert of_map["image/png"]
    assert [Path(tmp_path / link["text/plain"]).exists() for link in links] == [True, True]
