"""A store's points on a map: the right rows, by themselves, whoever comes along; scores; the page; what is refused."""

import colorsys
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_CLASSES, TINY_NETWORK, encode, random_picture, wait_for
from PIL import Image
from safetensors.torch import save_file
from test_map_browser import chromium  # noqa: F401
from test_map_page import array_of, handed_over
from test_report_browser import needs_chromium
from tiny_network import trained

from exemplar_ray import UsageError, open_store
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.explore.groups import grouped, labels_of_groups
from exemplar_ray.maps.placing import FittedMap
from exemplar_ray.maps.scores import knn_accuracy

pytest.importorskip("umap")

SHARDS, ROWS, BROKEN = 3, 24, 30
PREPARED = ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}"]
FEW = ["--neighbours", "8", "--seeds", "2"]


def picture(seed):
    """Noise in the colour of its class."""
    tint = np.array(colorsys.hsv_to_rgb(seed % 3 / 3, 0.8, 1.0)) * 255
    return Image.fromarray((np.asarray(random_picture(seed)) * 0.4 + tint * 0.6).astype(np.uint8))


def write_data(folder, first=0, broken=None, shards=SHARDS):
    images = [
        LabelledImage(encode(picture(first + i)) if i != broken else b"none", f"n0144076{i % 3}_{i}.JPEG", i % 3)
        for i in range(shards * ROWS)
    ]
    write_images(images, str(folder), TINY_CLASSES, ROWS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, ray_cluster):
    """Of a small network with weights in a file: `real` with an image that was skipped, `others` of other images."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("stores")
    save_file(trained().state_dict(), folder / "tiny.safetensors")
    network = ["--model", TINY_NETWORK.replace(":trained", ":untrained"), "--weights", str(folder / "tiny.safetensors")]
    write_data(folder / "images", broken=BROKEN)
    write_data(folder / "others-images", first=1000, shards=1)
    for name, data, more in (("real", "images", ["--max-skipped", "1"]), ("others", "others-images", [])):
        words = ["activations", "--data", str(folder / data), "--out", str(folder / name), *network, *PREPARED]
        assert main([*words, "--layer", "mixed", "conv1", "--pool", "mean", "none", *more]) == 0
    return folder


@pytest.fixture(scope="module")
def explored(stores):
    """A map of `real`, with `others` placed in it, and the network with random weights beside."""
    from exemplar_ray.cli import main

    words = ["explore", str(stores / "real"), "--layer", "mixed", "--pool", "mean", "--out", str(stores / "map"), *FEW]
    assert main([*words, "--project", str(stores / "others"), "--untrained", "3", "--clusters-on", "points"]) == 0
    return stores / "map"


def test_every_image_is_on_the_map_with_its_own_ids(stores, explored):
    table = pq.read_table(explored / "map.parquet")
    assert table.column_names == [*open_store(str(stores / "real")).rows.column_names, "set", "x", "y", "cluster"]
    both = [open_store(str(stores / name)).rows for name in ("real", "others")]
    assert len(both[0]) == SHARDS * ROWS - 1
    assert table.drop_columns(["set", "x", "y", "cluster"]).equals(pa.concat_tables(both))
    assert table["set"].to_pylist() == ["real"] * len(both[0]) + ["others"] * len(both[1])
    assert table["cluster"].null_count == len(both[1])


def test_points_lie_where_the_kept_map_places_them_whoever_comes_along(stores, explored):
    table = pq.read_table(explored / "map.parquet")
    with np.load(explored / "fitted.npz", allow_pickle=False) as arrays:
        fitted = FittedMap.from_arrays(dict(arrays))
    ours, theirs = (open_store(str(stores / name)).array("mixed", "mean") for name in ("real", "others"))
    shown = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    assert np.array_equal(shown, np.concatenate([fitted.place(ours), fitted.place(theirs)]))
    assert np.array_equal(shown[len(ours) :][3:4], fitted.place(theirs[3:4]))
    assert np.array_equal(shown[len(ours) :], fitted.place(np.concatenate([ours[:5], theirs]))[5:])


def test_scores_are_those_of_the_points(stores, explored):
    scores = json.loads((explored / "scores.json").read_text())
    assert set(scores) == {"map", "beside"}
    store = open_store(str(stores / "real"))
    again = knn_accuracy(store.array("mixed", "mean"), store.rows["label"].to_numpy())
    assert scores["map"]["knn_points"] == {"value": again.value, "words": again.words, "over_seeds": None}
    assert again.value > 0.9  # the classes are coloured
    over = scores["map"]["trustworthiness"]["over_seeds"]
    assert over["least"] <= scores["map"]["trustworthiness"]["value"] <= over["most"]
    assert "2 seeds" in over["words"]
    assert scores["beside"]["trustworthiness"]["value"] != scores["map"]["trustworthiness"]["value"]


def test_an_untrained_network_is_called_so_wherever_it_is_read(stores, explored):
    beside = open_store(str(stores / "real" / "untrained-3" / "mixed-mean"))
    assert not beside.network.trained
    assert beside.network.weights == "random:3"
    assert beside.rows.equals(open_store(str(stores / "real")).rows)
    page = (explored / "beside" / "page" / "index.html").read_text()
    assert '<p class="warning" role="note">UNTRAINED NETWORK' in page
    trained_page = (explored / "page" / "index.html").read_text()
    assert "UNTRAINED NETWORK" not in trained_page
    assert "random weights, seed 3 — UNTRAINED" in trained_page


def test_the_page_has_every_point_and_its_picture(stores, explored):
    index = handed_over(explored / "page", "index")
    assert index["points"] == (SHARDS + 1) * ROWS - 1
    names = [one["name"] for one in index["colourings"]]
    assert names == ["class", "cluster", "set", *(f"mixed:{channel}" for channel in range(12))]
    activations = np.concatenate([open_store(str(stores / name)).array("mixed", "mean") for name in ("real", "others")])
    scaled = (activations[:, 5] - activations[:, 5].min()) / np.ptp(activations[:, 5])
    assert np.abs(array_of(explored / "page", "c8") / 65_534 - scaled).max() < 1e-4
    with Image.open(explored / "page" / "thumbnails" / "0.jpg") as sheet:
        for place, seed in ((0, 0), (BROKEN, BROKEN + 1), (SHARDS * ROWS - 1, 1000)):
            left, top = place % 32 * 64, place // 32 * 64
            shown = np.asarray(sheet.crop((left + 8, top + 8, left + 56, top + 56)), float).mean(axis=(0, 1))
            assert np.abs(shown - np.asarray(picture(seed), float).mean(axis=(0, 1))).max() < 16


@needs_chromium
def test_the_pages_of_both_networks_open_and_lead_to_each_other(explored, visit):
    page = visit(f"{explored.as_uri()}/!page/index.html")
    wait_for(page, "document.querySelectorAll('#list li').length > 0")
    page.get_by_role("link", name="UNTRAINED").click()
    wait_for(page, "document.querySelectorAll('#list li').length > 0")
    assert page.get_by_role("note").inner_text().startswith("UNTRAINED NETWORK")
    page.get_by_role("link", name="tiny").click()
    wait_for(page, "document.querySelectorAll('#list li').length > 0")
    assert page.get_by_role("note").count() == 0


def test_the_map_is_exported_as_embedding_atlas_loads_it(stores, explored, tmp_path, cli):
    """Its loader is `pandas.read_parquet`; pictures are as the Hub has them, {bytes, path}."""
    status, said = cli("export", explored, tmp_path / "atlas", "--format", "embedding-atlas")
    assert (status, "--x projection_x --y projection_y --text class_name --image image" in said) == (0, True), said
    loaded = pd.read_parquet(tmp_path / "atlas" / "dataset.parquet")
    table = pq.read_table(explored / "map.parquet")
    for name in table.column_names:
        assert (
            loaded[{"x": "projection_x", "y": "projection_y"}.get(name, name)]
            .astype(object)
            .where(lambda column: column.notna(), None)
            .tolist()
            == table[name].to_pylist()
        )
    parts = [pq.read_table(path).to_pylist() for path in sorted((explored / "parts").glob("*.pictures.parquet"))]
    assert [image["bytes"] for image in loaded["image"]] == [row["picture"] for part in parts for row in part]
    for words in (["export", explored, tmp_path / "atlas"], ["export", stores / "real", tmp_path / "new"]):
        status, said = cli(*words, "--format", "embedding-atlas")
        assert (status, said.count("\n")) == (2, 1)
    assert not (tmp_path / "new").exists()


def test_running_it_again_does_nothing_and_mends_what_is_broken(stores, explored, cli):
    words = ["explore", stores / "real", "--layer", "mixed", "--pool", "mean", "--out", explored, *FEW]
    words += ["--project", stores / "others", "--untrained", "3", "--clusters-on", "points"]
    before = {path: path.read_bytes() for path in explored.rglob("*") if path.is_file() and path.name != "summary.json"}
    status, said = cli(*words)
    assert (status, said.count("nothing to do")) == (0, 2), said
    for part in (explored / "parts").glob("00000[01].*.json"):
        part.write_bytes(b"{}")
    (explored / "map.parquet").unlink()
    status, said = cli(*words)
    assert (status, "it is scanned again" in said) == (0, True), said
    changed = [
        path.name for path, content in before.items() if path.read_bytes() != content and "parts" not in str(path)
    ]
    assert changed == []
    status, said = cli(*words, "--seed", "1")
    assert (status, said.count("error:"), "seed" in said) == (2, 1, True), said


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_other_methods_and_groups_of_classes(stores, tmp_path, cli, method):
    words = ["--layer", "mixed", "--pool", "mean", "--method", method, "--seeds", "1", "--colours", "2-3"]
    words += ["--clusters", "kmeans", "--cluster-size", "2", "--groups", "{fish: 0-1, shark: 2}", "--no-thumbnails"]
    words += ["--neighbours", "8"] if method == "tsne" else []
    status, said = cli("explore", stores / "real", *words, "--out", tmp_path / "map")
    assert status == 0, said
    index = handed_over(tmp_path / "map" / "page", "index")
    assert [one["name"] for one in index["colourings"]] == ["class", "group", "cluster", "mixed:2", "mixed:3"]
    assert index["thumbnails"] is None
    assert index["colourings"][1]["names"] == ["fish", "shark"]
    table, scores = (
        pq.read_table(tmp_path / "map" / "map.parquet"),
        json.loads((tmp_path / "map" / "scores.json").read_text()),
    )
    assert set(table["cluster"].to_pylist()) == {0, 1}
    values = open_store(str(stores / "real")).array("mixed", "mean")
    labels = np.minimum(table["label"].to_numpy() - 1, 1).clip(0)
    assert scores["map"]["knn_points"]["value"] == knn_accuracy(values, labels).value
    page = (tmp_path / "map" / "page" / "index.html").read_text()
    assert "groups, among all activations" in page
    assert f"--method {method}" in page


def test_images_without_finite_activations_are_left_out_and_counted(stores, tmp_path, cli):
    flags = ["--model", TINY_NETWORK.replace(":trained", ":dividing"), *PREPARED, "--layer", "conv1"]
    status, said = cli(
        "activations", "--data", stores / "images", "--out", tmp_path / "store", *flags, "--max-skipped", "1"
    )
    assert status == 0, said
    store = open_store(str(tmp_path / "store"))
    finite = np.isfinite(store.array()).all(axis=1)
    assert 0 < finite.sum() < len(store)
    status, said = cli("explore", tmp_path / "store", "--method", "pca", "--clusters", "none", "--seeds", "1")
    assert status == 0, said
    out = tmp_path / "store" / "maps" / "conv1-mean-pca"
    table = pq.read_table(out / "map.parquet")
    assert table.drop_columns(["set", "x", "y", "cluster"]).equals(store.rows.filter(pa.array(finite)))
    page = (out / "page" / "index.html").read_text()
    assert f"{(~finite).sum()} IMAGES LEFT OUT" in page


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["real"], "the store has several: give layer"),
        (["real", "--layer", "mixed"], "the store has several: give pool"),
        (["real", "--layer", "mixed", "--pool", "none"], "points are pooled"),
        (["real", "--layer", "mixd", "--pool", "mean"], "did you mean 'mixed'"),
        (["real", "--method", "umpa"], "unknown method 'umpa'; did you mean 'umap'"),
        (["real", "--seeds", "0"], "seeds is a whole number from 1"),
        (["real", "--groups", "{a: 0-1, b: 1}"], "label 1 is in 'a' and in 'b'"),
        (["real", "--groups", "[1]"], "groups is {group: labels}"),
        (["real", "--layer", "mixed", "--pool", "mean", "--project", "real"], "is given twice"),
        (["real", "--layer", "mixed", "--pool", "mean", "--beside", "others"], "images are in the first set only"),
        (["real", "--layer", "mixed", "--pool", "mean", "--project", "otherwise"], "has other weights than"),
        (["real", "--layer", "mixed", "--pool", "mean", "--colours", "50"], "channel 50 is out of range"),
        (["otherwise", "--untrained", "0"], "loads its own"),
        (["images"], "run.json"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(stores, tmp_path, cli, words, expected):
    if not (stores / "otherwise").exists():
        flags = [
            "--model",
            f"{TINY_NETWORK}_otherwise",
            *PREPARED,
            "--layer",
            "mixed",
            "--data",
            stores / "others-images",
        ]
        assert cli("activations", "--out", stores / "otherwise", *flags)[0] == 0
    given = [str(stores / word) if (stores / word).exists() else word for word in words]
    status, said = cli("explore", *given, "--out", tmp_path / "map")
    lines = [line for line in said.strip().split("\n") if "exemplar-ray: error:" in line]
    assert (status, len(lines)) == (2, 1), said
    assert expected in lines[0]
    assert not (tmp_path / "map").exists()


def test_a_store_that_changes_meanwhile_is_refused(stores, tmp_path, cli):
    """Its parts are of what it was when the command began."""
    from exemplar_ray.explore.spec import PointsOf
    from exemplar_ray.explore.tasks import points_of

    with pytest.raises(UsageError, match="has changed since this command began"):
        points_of(PointsOf("real", str(stores / "real"), "mixed", "mean", "0" * 64))


def test_groups_are_read_as_they_are_written():
    assert grouped(np.array([0, 7, 3, -1]), {"a": "0-1", "b": "5-7, 3"}).tolist() == [0, 1, 1, -1]
    for wrong in ({"a": "x"}, {"a": "3-1"}, {"a": "-1"}, {}, {"a": "1-"}):
        with pytest.raises(UsageError, match="groups"):
            labels_of_groups(wrong)
