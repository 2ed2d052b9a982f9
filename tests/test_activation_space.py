"""The notebook of the activation space, run in a real one on some of its digits: trained beside untrained."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import PROJECT

from exemplar_ray import open_store

NOTEBOOK = PROJECT / "docs" / "activation_space.ipynb"

pytest.importorskip("umap")


def test_it_is_short_holds_no_results_and_runs(tmp_path, run_notebook):
    code = run_notebook(NOTEBOOK, "images, steps, seeds, layer = 600, 40, 1, 'block3'", 47)
    store = open_store(str(tmp_path / "store"))
    assert len(store) == 300
    assert store.network.trained
    maps = [pq.read_table(tmp_path / "map" / name) for name in ("map.parquet", "beside/map.parquet")]
    assert all(one.select(store.rows.column_names).equals(store.rows) for one in maps)
    # Of images that it never saw: what training is for.
    trained, untrained = json.loads((tmp_path / "map" / "scores.json").read_text()).values()
    for score in ("knn_points", "adjusted_mutual_information", "silhouette_classes_points"):
        assert trained[score]["value"] > untrained[score]["value"] + 0.05
    assert trained["knn_points"]["value"] > 0.85
    outputs = [one for cell in code for one in cell.outputs if one.output_type in ("execute_result", "display_data")]
    of_maps, of_scores, of_clusters, link = (one.data for one in outputs)
    assert of_maps["image/png"]
    assert of_scores["text/html"].count("<tr") == 1 + len(trained)
    assert f"{trained['knn_points']['value']:.6f}" in of_scores["text/html"]
    assert of_clusters["text/html"].count("<tr") == 2 + 10
    assert Path(tmp_path / link["text/plain"]).exists()
