"""Two sets of images in one network, two networks over the same images, from end to end: numbers, refusals, pages."""

import json
import runpy
import shutil
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import (
    BVLC,
    PROJECT,
    SAMPLE,
    TESTS,
    TINY_CLASSES,
    TINY_NETWORK,
    encode,
    needs_shared,
    random_picture,
    wait_for,
)
from test_map_browser import chromium  # noqa: F401
from test_report_browser import needs_chromium

from exemplar_ray import open_store
from exemplar_ray.cli import main
from exemplar_ray.compare.options import METHODS
from exemplar_ray.compare.tables import SCHEMAS
from exemplar_ray.comparisons import frechet
from exemplar_ray.comparisons.channels import shifts
from exemplar_ray.comparisons.neighbours import nearness
from exemplar_ray.comparisons.same_images import alike, exemplars_in_common, strongest
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.maps.projections import METHODS as KNOWN_METHODS
from exemplar_ray.moments import Moments

altered_copy = runpy.run_path(str(PROJECT / "jobs" / "altered_copies.py"))["altered_copy"]
AXE = (TESTS / "vendor" / "axe.min.js").read_text()

PREPROCESS = ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}"]
NETWORK = ["--model", TINY_NETWORK, *PREPROCESS]
OTHER_NETWORK = ["--model", f"{TINY_NETWORK}_otherwise", *PREPROCESS]
LAYERS = ["--layer", "conv1", "mixed"]
SHARDS, ROWS = 12, 5


def write_data(folder, rows=ROWS, step=1):
    images = [
        LabelledImage(encode(random_picture(i)), f"n0144076{i % 3}_{i}.JPEG", i % 3) for i in range(SHARDS * ROWS)
    ][::step]
    write_images(images, str(folder), TINY_CLASSES, rows)


def made(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster):
    """Data `real`, two blurred copies, the same in other shards; stores (s-) and runs (r-) of them."""
    folder = tmp_path_factory.mktemp("compare")
    write_data(folder / "real")
    write_data(folder / "resharded", rows=20, step=-1)
    for radius in (1, 4):
        altered_copy(folder / "real", folder / f"blur-{radius}", "blur", radius)
    for name in ("real", "blur-1", "blur-4"):
        made("activations", "--data", folder / name, "--out", folder / f"s-{name}", *NETWORK, *LAYERS)
    made("activations", "--data", folder / "real", "--out", folder / "s-other", *OTHER_NETWORK, *LAYERS)
    made("activations", "--data", folder / "resharded", "--out", folder / "s-resharded", *OTHER_NETWORK, *LAYERS)
    for name in ("real", "blur-4"):
        made("run", "--data", folder / name, "--out", folder / f"r-{name}", *NETWORK, "--layer", "mixed", "--top-k", 4)
    made(
        "run", "--data", folder / "real", "--out", folder / "r-other", *OTHER_NETWORK, "--layer", "mixed", "--top-k", 6
    )
    return folder


@pytest.fixture(scope="module")
def compared(folder):
    """Compare two of the folder's stores or runs, once; return where."""
    there = {}

    def compared(a, b, *flags):
        key = (a, b, *flags)
        if key not in there:
            there[key] = folder / f"compared-{len(there)}"
            made("compare", folder / a, folder / b, "--out", there[key], *flags)
        return there[key]

    return compared


def table(where, name, **equal):
    rows = pq.read_table(where / f"{name}.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in equal.items())]


def layer(where, name="mixed"):
    [row] = table(where, "layers", layer=name)
    return row


def points(folder, store, name="mixed"):
    return open_store(str(folder / store)).array(name, "mean")


def test_a_set_is_at_distance_0_from_itself_and_further_from_what_is_altered_more(compared):
    itself, near, far = (layer(compared("s-real", f"s-{name}")) for name in ("real", "blur-1", "blur-4"))
    assert itself["frechet"] == itself["ks_median"] == itself["ks_most"] == 0
    assert itself["precision"] == itself["recall"] == itself["density"] == itself["coverage"] == 1
    assert itself["frechet"] < near["frechet"] < far["frechet"]
    assert itself["ks_median"] < near["ks_median"] < far["ks_median"]
    assert itself["precision"] >= near["precision"] > far["precision"]
    assert itself["coverage"] >= near["coverage"] > far["coverage"]
    for row in (near, far):
        assert row["frechet_low"] <= row["frechet"] <= row["frechet_high"]
    shifted = table(compared("s-real", "s-real"), "channels")
    assert {row[name] for row in shifted for name in ("ks", "wasserstein", "ks_error", "wasserstein_error")} == {0}


def test_the_tables_are_what_arrays_give(compared, folder):
    where, (a, b) = compared("s-real", "s-blur-4"), (points(folder, f"s-{name}") for name in ("real", "blur-4"))
    row, near, moved = layer(where), nearness(a, b, 5), shifts(a, b)
    assert row["frechet"] == pytest.approx(frechet.distance(Moments.of(a), Moments.of(b)), rel=1e-9)
    for name in ("precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage"):
        assert row[name] == getattr(near, name)
    channels = table(where, "channels", layer="mixed")
    assert [channel["channel"] for channel in channels] == list(range(12))
    assert [channel["ks"] for channel in channels] == moved.ks.tolist()
    assert [channel["wasserstein"] for channel in channels] == moved.wasserstein.tolist()
    ids = open_store(str(folder / "s-real")).rows.to_pylist()
    [of_a, of_b] = (table(where, "images", layer="mixed", set=letter) for letter in "AB")
    assert [{key: image[key] for key in ids[0]} for image in of_a] == ids
    assert [image["covered"] for image in of_a] == near.covered.tolist()
    assert [image["among_other"] for image in of_b] == near.in_real.tolist()
    hold_the_nearest(where, folder / "s-real", folder / "s-blur-4")
    for channel in (0, 11):
        which = strongest(b, 10)[channel]
        found = table(where, "exemplars", layer="mixed", set="B", channel=channel)
        assert [(one["shard"], one["row"]) for one in found] == [(ids[i]["shard"], ids[i]["row"]) for i in which]
        assert [one["activation"] for one in found] == b[which, channel].tolist()


def hold_the_nearest(where, a, b):
    """Every image's nearest of the other set is the one that a plain search finds."""
    stores = [open_store(str(store)) for store in (a, b)]
    (of_a, ids_a), (of_b, ids_b) = (
        (store.array("mixed", "mean").astype(np.float64), store.rows.to_pylist()) for store in stores
    )
    distances = np.linalg.norm(of_a[:, None] - of_b[None], axis=2)
    for letter, apart, ids in (("A", distances, ids_b), ("B", distances.T, ids_a)):
        images = table(where, "images", layer="mixed", set=letter)
        assert np.allclose([image["nearest"] for image in images], apart.min(axis=1))
        nearest = [ids[place] for place in apart.argmin(axis=1)]
        assert [(i["nearest_shard"], i["nearest_row"]) for i in images] == [(i["shard"], i["row"]) for i in nearest]


def test_classes_are_compared_by_label(compared, folder):
    where = compared("s-real", "s-blur-4")
    labels = np.array(open_store(str(folder / "s-real")).rows["label"])
    a, b = (points(folder, f"s-{name}") for name in ("real", "blur-4"))
    index = nearness(a, b, 5).generated_to_real.index
    for label, row in enumerate(table(where, "classes", layer="mixed")):
        mine = labels == label
        assert (row["label"], row["class_name"], row["images_a"], row["images_b"]) == (
            label,
            TINY_CLASSES[label],
            20,
            20,
        )
        centroid = np.linalg.norm(a[mine].mean(axis=0, dtype=float) - b[mine].mean(axis=0, dtype=float))
        assert row["centroid"] == pytest.approx(centroid, rel=1e-6)
        assert row["fidelity"] == pytest.approx((labels[index[mine]] == label).mean())


def test_histograms_of_runs_say_the_same_as_stores_within_their_error(compared):
    exact = table(compared("s-real", "s-blur-4"), "channels", layer="mixed")
    for pair in (("r-real", "r-blur-4"), ("s-real", "r-blur-4")):
        where = compared(*pair)
        for one, other in zip(exact, table(where, "channels"), strict=True):
            assert abs(one["wasserstein"] - other["wasserstein"]) <= other["wasserstein_error"] + 1e-12
            assert -1e-12 <= one["ks"] - other["ks"] <= other["ks_error"] + 1e-12
            assert other["wasserstein_error"] > 0
            assert other["ks_low"] <= other["ks"] <= other["ks_high"]
        row = layer(where)
        assert row["frechet"] is row["precision"] is None
        assert "take a store of activations of both sets" in row["warnings"][-1]


def test_a_run_without_its_parts_has_no_intervals_and_says_so(folder, tmp_path, cli):
    shutil.copytree(folder / "r-blur-4", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "parts")
    assert cli("compare", folder / "r-real", tmp_path / "run", "--out", tmp_path / "out")[0] == 0
    row = layer(tmp_path / "out")
    assert "B: the parts are not those of the result" in row["warnings"][0]
    assert "no interval" in row["warnings"][1]
    assert {one["ks_low"] for one in table(tmp_path / "out", "channels")} == {None}


def test_two_networks_over_the_same_images(compared, folder):
    where = compared("s-real", "s-other")
    rows = table(where, "layers")
    assert [(row["layer"], row["other_layer"]) for row in rows] == [
        (one, other) for one in ("conv1", "mixed") for other in ("conv1", "mixed")
    ]
    for row in rows:
        found = alike(points(folder, "s-real", row["layer"]), points(folder, "s-other", row["other_layer"]))
        assert (row["cka"], row["debiased"]) == pytest.approx((found.cka, found.debiased), rel=1e-9)
    a, b = points(folder, "s-real"), points(folder, "s-other")
    common = exemplars_in_common(strongest(a, 10), strongest(b, 10))
    channels = table(where, "channels", layer="mixed", other_layer="mixed")
    assert [row["in_common"] for row in channels] == common.tolist()
    assert {row["layer"] for row in table(where, "channels")} == {"conv1", "mixed"}


def test_images_in_other_shards_are_joined_by_their_paths(compared):
    """Of the same network and images, every number is the same."""
    by_row, by_path = compared("s-real", "s-other"), compared("s-real", "s-resharded", "--by", "image_path")
    assert table(by_row, "layers") == table(by_path, "layers")
    assert table(by_row, "channels") == table(by_path, "channels")


def test_exemplars_of_runs_are_compared(compared, folder):
    """Of as many as both have."""
    a, b = points(folder, "s-real"), points(folder, "s-other")
    expected = exemplars_in_common(strongest(a, 4), strongest(b, 4)).tolist()
    for pair in (("r-real", "r-other"), ("r-real", "s-other")):
        assert [row["in_common"] for row in table(compared(*pair), "channels")] == expected


def test_the_schemas_are_those_of_the_documentation(compared):
    for kind, where in (("images", compared("s-real", "s-blur-4")), ("networks", compared("s-real", "s-other"))):
        for name, schema in SCHEMAS[kind].items():
            assert pq.read_schema(where / f"{name}.parquet") == schema
    assert METHODS == KNOWN_METHODS


def test_running_it_again_does_nothing(compared, folder, cli):
    where = compared("s-real", "s-blur-4")
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()}
    status, text = cli("compare", folder / "s-real", folder / "s-blur-4", "--out", where)
    assert status == 0
    assert "nothing to do" in text
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()} == before
    status, text = cli("status", where)
    assert "26 done" in text
    status, text = cli("compare", folder / "s-real", folder / "s-blur-1", "--out", where)
    assert (status, len(text.strip().splitlines())) == (2, 1)
    assert "these keys differ: compared" in text


def test_only_what_failed_is_done_again(folder, tmp_path, cli):
    """Images that are gone while the pictures of a shard are made."""
    shutil.copytree(folder / "blur-1", tmp_path / "data")
    made("activations", "--data", tmp_path / "data", "--out", tmp_path / "store", *NETWORK, "--layer", "mixed")
    shard = sorted((tmp_path / "data").iterdir())[3]
    shard.rename(tmp_path / "gone")
    out = tmp_path / "out"
    status, text = cli("compare", folder / "s-real", tmp_path / "store", "--out", out)
    assert status == 1
    assert f"pictures of B: {shard.name}: the images of {shard.name} are not where they were" in text
    assert "--no-pictures compares without them" in text
    assert not (out / "report" / "index.html").exists()
    done = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.parquet")}
    (tmp_path / "gone").rename(shard)
    assert cli("compare", folder / "s-real", tmp_path / "store", "--out", out)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    fresh = tmp_path / "fresh"
    assert cli("compare", folder / "s-real", tmp_path / "store", "--out", fresh)[0] == 0
    for name in ("layers", "channels", "images", "classes", "exemplars"):
        assert (out / f"{name}.parquet").read_bytes() == (fresh / f"{name}.parquet").read_bytes()
    shutil.rmtree(tmp_path / "data")
    assert cli("compare", folder / "s-real", tmp_path / "store", "--out", tmp_path / "none", "--no-pictures")[0] == 0


@pytest.fixture(scope="module")
def odd(folder):
    """Stores and runs that do not go with the others."""
    real, blurred = ["--data", folder / "real"], ["--data", folder / "blur-1"]
    small = "{resize: 34, crop: 32, mean: [117, 117, 117]}"
    made("activations", *real, "--out", folder / "s-small", "--model", TINY_NETWORK, "--preprocess", small, *LAYERS)
    made("activations", *real, "--out", folder / "s-fast", *NETWORK, *LAYERS, "--decode", "fast")
    made("activations", *real, "--out", folder / "s-logits", *NETWORK, "--layer", "classifier")
    made("activations", *real, "--out", folder / "s-few", *NETWORK, "--layer", "mixed", "--channels", "0-3")
    made("activations", *real, "--out", folder / "s-whole", *NETWORK, "--layer", "mixed", "--pool", "none")
    made("activations", *blurred, "--out", folder / "s-both-differ", *OTHER_NETWORK, *LAYERS)
    made("run", *real, "--out", folder / "r-distinct", *OTHER_NETWORK, "--layer", "mixed", "--top-k", 4, "--distinct")
    shutil.copytree(folder / "s-real", folder / "s-unfinished")
    (folder / "s-unfinished" / "summary.json").unlink()


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("a", "b", "flags", "message"),
    [
        ("s-real", "nowhere", [], "is no run folder"),
        ("s-real", "s-unfinished", [], "has no result yet"),
        ("s-real", "s-small", [], "preprocessing differs: shorter side to 36 pixels"),
        ("s-real", "s-fast", [], "decode differs: reference in A, fast in B"),
        ("s-real", "s-logits", [], "A and B have no layer and pool in common: A has conv1 (mean), mixed (mean); B has"),
        ("s-real", "s-whole", [], "B has whole maps only"),
        ("s-real", "s-few", [], "'mixed' has the channels 0-11 in A and 0-3 in B"),
        ("s-real", "s-real", ["--pool", "none"], "whole maps (pool none) are not compared"),
        ("s-real", "s-real", ["--pool", "max"], "A has no pool 'max'; "),
        ("s-real", "s-real", ["--layer", "mixd"], "A has no layer 'mixd'; did you mean 'mixed'?"),
        ("s-real", "s-real", ["--other-layer", "mixed"], "leave --other-layer out"),
        ("s-real", "s-real", ["--by", "image_path"], "its images are not paired, so leave --by out"),
        ("s-real", "s-real", ["--neighbours", "60"], "k must be from 1 to 59"),
        ("s-real", "s-real", ["--method", "pac"], "unknown method 'pac'; did you mean 'pca'"),
        (
            "s-real",
            "s-both-differ",
            [],
            "but not over the same images: shard train-00000-of-00012.parquet holds others",
        ),
        ("s-real", "s-resharded", [], "images are in the first set only, such as shard train-00000-of-00012.parquet"),
        ("s-real", "s-both-differ", ["--other-layer", "conv2"], "but not over the same images"),
        ("s-real", "s-other", ["--other-layer", "conv2"], "B has no layer 'conv2'; did you mean 'conv1'?"),
        ("r-real", "s-other", ["--by", "image_path"], "the images of a run are named by shard and row"),
        ("r-real", "r-distinct", [], "exemplars were chosen in two ways: distinct is False in A, and True in B"),
        ("r-real", "s-resharded", [], "their shards, or the parts of these that were asked for, are others"),
    ],
)
def test_what_would_mean_nothing_is_refused_in_one_line(a, b, flags, message, folder, tmp_path, cli):
    status, text = cli("compare", folder / a, folder / b, "--out", tmp_path / "out", *flags)
    assert (status, len(text.strip().splitlines()[-1:])) == (2, 1), text
    assert message in text
    assert [line for line in text.splitlines() if "error: " in line] == [text.strip().splitlines()[-1]]
    assert not (tmp_path / "out" / "report").exists()


def test_a_comparison_is_none_of_what_is_compared(compared, folder, tmp_path, cli):
    status, text = cli("compare", compared("s-real", "s-blur-4"), folder / "s-real", "--out", tmp_path / "out")
    assert (status, len(text.strip().splitlines())) == (2, 1)
    assert "is a run folder of the job compare; compare takes stores of activations, and runs of exemplars" in text
    assert (
        cli("compare", folder / "s-real", folder / "s-real")[1]
        .strip()
        .endswith("--out is missing: give it as a flag or as a key of --config")
    )


def test_labels_that_mean_something_else_are_not_compared(folder, tmp_path, cli):
    images = [LabelledImage(encode(random_picture(i)), f"n0200000{i % 3}_{i}.JPEG", i % 3) for i in range(30)]
    write_images(images, str(tmp_path / "data"), ["cat", "dog", "cow"], 5)
    made("activations", "--data", tmp_path / "data", "--out", tmp_path / "store", *NETWORK, "--layer", "mixed")
    assert cli("compare", folder / "s-real", tmp_path / "store", "--out", tmp_path / "out", "--no-pictures")[0] == 0
    row = layer(tmp_path / "out")
    assert "no classes: label 0 is n01440760 tench in A and n02000000 cat in B" in row["warnings"]
    assert row["fidelity"] is None
    assert table(tmp_path / "out", "classes") == []
    # Of which a row is another image than A's.
    hold_the_nearest(tmp_path / "out", folder / "s-real", tmp_path / "store")
    assert {image["voted"] for image in table(tmp_path / "out", "images")} == {None}


def test_folders_of_images_number_the_classes_that_they_have(tmp_path, cli):
    """Where one class is lacking, the next one has its number: without synsets, names tell."""
    for of, names in (("real", "378"), ("generated", "38")):
        for name in names:
            (tmp_path / of / f"class {name}").mkdir(parents=True)
            for number in range(12):
                random_picture(number).save(tmp_path / of / f"class {name}" / f"{number}.png")
        made("activations", "--data", tmp_path / of, "--out", tmp_path / f"s-{of}", *NETWORK, "--layer", "mixed")
    words = ["compare", tmp_path / "s-real", tmp_path / "s-generated", "--out", tmp_path / "out", "--no-pictures"]
    assert cli(*words)[0] == 0
    row = layer(tmp_path / "out")
    assert "no classes: label 1 is class 7 in A and class 8 in B" in row["warnings"]
    assert (row["fidelity"], row["classes_covered"]) == (None, None)


def test_shards_of_one_class_each_are_warned_of(tmp_path, cli):
    images = [LabelledImage(encode(random_picture(i)), f"n0144076{i % 3}_{i}.JPEG", i % 3) for i in range(36)]
    for of, shown in (("mixed", images), ("sorted", sorted(images, key=lambda one: one.label))):
        write_images(shown, str(tmp_path / of), TINY_CLASSES, 12)
        made("activations", "--data", tmp_path / of, "--out", tmp_path / f"s-{of}", *NETWORK, "--layer", "mixed")
    words = ["compare", tmp_path / "s-mixed", tmp_path / "s-sorted", "--out", tmp_path / "out", "--no-pictures"]
    assert cli(*words)[0] == 0
    said = [line for line in layer(tmp_path / "out")["warnings"] if "few classes each" in line]
    assert [line.partition(" hold")[0] for line in said] == ["shards of B"]


def test_what_limits_a_comparison_is_said_where_it_is_read(folder, tmp_path, cli):
    part = ["--data", folder / "real", "--images", "20", "--out", tmp_path / "part", *NETWORK, "--layer", "mixed"]
    made("activations", *part)
    random = ["--model", "inceptionv1", "--weights", "random:0", "--layer", "conv2d0", "--out", tmp_path / "random"]
    made("activations", "--data", folder / "real", "--images", "20", *random)
    status, text = cli("compare", tmp_path / "part", tmp_path / "random", "--out", tmp_path / "networks")
    assert status == 0
    page = (tmp_path / "networks" / "report" / "index.html").read_text()
    for said in ("A is A PART OF THE DATA: ", "B is an UNTRAINED NETWORK", "see the images through different prepro"):
        assert said in page
    assert "A is A PART OF THE DATA: " in text
    assert "20 images are no more than the 64 channels: plain CKA is close to 1" in page
    assert cli("compare", tmp_path / "part", folder / "s-real", "--out", tmp_path / "sets", "--layer", "mixed")[0] == 0
    assert cli("compare", tmp_path / "random", tmp_path / "random", "--out", tmp_path / "few")[0] == 0
    row = layer(tmp_path / "few", "conv2d0")
    assert "20 points in 64 channels have no spread in some directions: the distance is too large" in row["warnings"]
    assert any("no extrapolation to infinitely many images: 20 of B are fewer" in one for one in row["warnings"])


def test_of_many_images_some_are_asked_and_the_rest_is_left_open(folder, tmp_path, cli):
    out = tmp_path / "out"
    assert (
        cli("compare", folder / "s-real", folder / "s-blur-4", "--out", out, "--points", "40", "--no-pictures")[0] == 0
    )
    assert (layer(out)["points_a"], layer(out)["images_a"]) == (40, 60)
    images = table(out, "images", layer="mixed", set="A")
    assert sum(image["nearest"] is not None for image in images) == 40
    assert all(image["x"] is not None for image in images)


@needs_shared
def test_real_photographs_against_their_altered_copies(tmp_path, ray_cluster):
    """Half of two shards, in a trained network: 0 from themselves, further the more they are altered."""
    for path in sorted(SAMPLE.glob("*.parquet"))[:2]:
        (tmp_path / "shards").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "shards" / path.name)
    network = ["--model", f"{BVLC}:load", "--layer", "mixed4a"]
    network += ["--preprocess", "{resize: 256, crop: 224, scale: 255, mean: [123, 117, 104], std: [1, 1, 1]}"]
    rows = {}
    for name, kind, strength in (("real", "blur", 0), ("mild", "blur", 1), ("strong", "blur", 4)):
        altered_copy(tmp_path / "shards", tmp_path / name, kind, strength, rows=50)
        made("activations", "--data", tmp_path / name, "--out", tmp_path / f"s-{name}", *network)
        out = tmp_path / f"c-{name}"
        made("compare", tmp_path / "s-real", tmp_path / f"s-{name}", "--out", out, "--draws", 2, "--no-pictures")
        rows[name] = layer(out, "mixed4a")
    assert rows["real"]["frechet"] == rows["real"]["ks_most"] == 0
    assert rows["real"]["coverage"] == 1
    for name in ("frechet", "ks_median"):
        assert rows["real"][name] < rows["mild"][name] < rows["strong"][name]
    assert rows["real"]["recall"] >= rows["mild"]["recall"] > rows["strong"]["recall"]


def overflows(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@needs_chromium
@pytest.mark.parametrize("width", [1400, 390])
def test_the_pages_of_two_sets_in_a_browser(compared, visit, width):
    report = (compared("s-real", "s-blur-4") / "report").as_uri()
    page = visit(f"{report}/!index.html", width)
    assert page.inner_text("h1") == "Two sets of images in one network"
    assert overflows(page) <= 0
    page.click("a:text('mixed (mean)')")
    page.wait_for_selector("#most")
    assert overflows(page) <= 0
    text = page.inner_text("main")
    assert "Images of A that nothing of B comes near: 57 of 60" in text
    ks = [float(one.split("KS ")[1].split()[0]) for one in page.locator("#content .channel h3").all_inner_texts()]
    assert all(one >= other for one, other in pairwise(ks[:12]))
    for picture in page.locator("main img").all():
        picture.scroll_into_view_if_needed()
    wait_for(page, "[...document.images].every(image => image.complete)")
    assert page.locator("main .no-picture").count() == 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth === 112)")
    page.evaluate(AXE)
    found = page.evaluate("axe.run({ preload: false }).then(found => found.violations.map(one => one.id))")
    assert found == []
    page.click("text=Both sets in one map")
    page.wait_for_selector("#colours button")
    assert page.locator("#colours button").all_inner_texts() == ["set", "class", "neighbours"]
    assert page.inner_text("output") == "120 images"


@needs_chromium
@pytest.mark.parametrize("pair", [("s-real", "s-other"), ("r-real", "r-other"), ("r-real", "r-blur-4")])
def test_the_other_pages_in_a_browser(compared, visit, pair):
    report = (compared(*pair) / "report").as_uri()
    for width in (1400, 390):
        page = visit(f"{report}/!index.html", width)
        assert overflows(page) <= 0
        page.click("a:text('mixed (mean)')")
        page.wait_for_selector("#most")
        assert overflows(page) <= 0
        assert page.locator("main .no-picture").count() == 0
        page.evaluate(AXE)
        assert page.evaluate("axe.run({ preload: false }).then(found => found.violations.map(one => one.id))") == []


def test_a_part_says_what_it_is_of(compared):
    values = json.loads((compared("s-real", "s-blur-4") / "run.json").read_text())
    assert values["job"] == "compare"
    assert [piece["name"] for piece in values["pieces"]][-2:] == ["conv1 mean", "mixed mean"]
