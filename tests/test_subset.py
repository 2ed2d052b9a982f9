"""A part of the images: so many, so many of each class, some classes; the same ones however a data set is split."""

import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from conftest import SAMPLE, TINY_FLAGS, encode, needs_shared, random_picture
from torchvision.models import _meta

from exemplar_ray import open_run
from exemplar_ray.data.columns import Chosen
from exemplar_ray.data.imagenet_names import name_of_synset, spelled_out
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shards import discover, inspect, open_shard
from exemplar_ray.data.subset import Wanted, choose, classes_of
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError

ALL = Wanted(None, None, (), 0)
CLASSES = ["tench, Tinca tinca", "crane", "crane", "n02101556"]


def images(count, paths=True):
    return [LabelledImage(bytes([i % 256, i // 256]), f"{i}.jpg" if paths else None, i % 4) for i in range(count)]


def data_set(folder, labels=None):
    shards, names = inspect(discover([str(folder)]), Chosen())
    return shards, labels or ClassLabels(names)


def chosen(folder, wanted, labels=None):
    """{what an image's bytes are} of those that are read, and what was chosen, and what is said."""
    shards, subset, notes = choose(*data_set(folder, labels), wanted)
    found = []
    for shard in shards:
        with open_shard(shard) as reader:
            read = list(reader.images())
            assert len(read) == reader.rows == shard.images
            assert [image.row for image in read] == shard.chosen_rows.tolist()
            found += [image.data for image in read]
    return sorted(found), subset, notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same 1,200 images in 6 shards and in 24, and in another order in 5; and without paths in 6 and 24."""
    folder = tmp_path_factory.mktemp("split")
    shuffled = [images(1200)[i] for i in np.random.default_rng(0).permutation(1200)]
    for name, these, rows in (("6", images(1200), 200), ("24", images(1200), 50), ("shuffled", shuffled, 240)):
        write_images(these, str(folder / name), CLASSES, rows)
    for name, rows in (("bare 6", 200), ("bare 24", 50)):
        write_images(images(1200, paths=False), str(folder / name), CLASSES, rows)
    return folder


def test_so_many_of_all_are_the_same_however_they_are_split(folder):
    """Against a plain computation: the lowest hashes of seed and path."""
    in_six, subset, notes = chosen(folder / "6", ALL._replace(images=1000, seed=7))
    assert in_six == chosen(folder / "24", ALL._replace(images=1000, seed=7))[0]
    assert in_six == chosen(folder / "shuffled", ALL._replace(images=1000, seed=7))[0]
    hashes = {image.data: xxhash.xxh3_64_intdigest(b"7\n" + image.path.encode()) for image in images(1200)}
    assert in_six == sorted(sorted(hashes, key=hashes.get)[:1000])
    assert (subset.chosen, subset.of) == (1000, 1200)
    assert notes == ["1,000 of 1,200 images: 1,000 at random (seed 7)"]
    others = chosen(folder / "6", ALL._replace(images=1000, seed=8))[0]
    assert in_six != others
    # Fewer are among those that are more.
    assert {*chosen(folder / "6", ALL._replace(images=30, seed=7))[0]} < {*in_six}


def test_without_paths_it_is_by_place_and_said(folder):
    in_six, _, notes = chosen(folder / "bare 6", ALL._replace(images=1000))
    assert in_six == chosen(folder / "bare 24", ALL._replace(images=1000))[0]
    assert len({*in_six}) == 1000
    assert notes[1:] == ["images have no paths, so they are drawn by their places in the data"]
    table = pq.read_table(folder / "6")
    path = pa.array(["one.jpg"] * len(table))
    image = pa.StructArray.from_arrays([table["image"].combine_chunks().field("bytes"), path], ["bytes", "path"])
    (folder / "twice").mkdir()
    pq.write_table(table.set_column(0, "image", image), folder / "twice" / "train.parquet")
    _, _, notes = chosen(folder / "twice", ALL._replace(images=10))
    assert notes[1:] == ["not all images have paths of their own, so they are drawn by their places in the data"]


def test_so_many_of_each_class_and_only_some_classes(folder):
    found, subset, _ = chosen(folder / "6", ALL._replace(per_class=20))
    assert Counter((data[0] + 256 * data[1]) % 4 for data in found) == dict.fromkeys(range(4), 20)
    assert subset.words == "80 of 1,200 images: at most 20 of each class at random (seed 0)"
    found, subset, _ = chosen(folder / "6", ALL._replace(classes=("TENCH", "3")))
    assert found == sorted(image.data for image in images(1200) if image.label in (0, 3))
    assert subset.classes == (0, 3)
    found, subset, notes = chosen(folder / "6", Wanted(50, 400, ("0", "n02101556"), 0))
    assert len(found) == 50
    assert notes == [
        "50 of 1,200 images: 2 classes, at most 400 of each, 50 at random (seed 0)",
        "2 classes have fewer than 400 images, which are all taken",
    ]
    assert chosen(folder / "6", ALL._replace(images=2000))[2][1:] == [
        "2,000 images are asked for; there are 1,200, which are all taken"
    ]
    # Of those that are drawn of each class, the first of all are those that are drawn of all.
    hashes = {image.data: xxhash.xxh3_64_intdigest(b"0\n" + image.path.encode()) for image in images(1200)}
    of = defaultdict(list)
    for data in sorted(hashes, key=hashes.get):
        of[(data[0] + 256 * data[1]) % 4].append(data)
    assert chosen(folder / "6", ALL._replace(per_class=20))[0] == sorted(d for one in of.values() for d in one[:20])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ALL._replace(classes=("crane",)), r"classes: 'crane' may be 1 \(crane\) or 2 \(crane\); give its number or"),
        (ALL._replace(classes=("tensh",)), "classes: there is no class 'tensh'; did you mean 'tench'"),
        (ALL._replace(classes=("9",)), "classes: there is no class '9'"),
    ],
)
def test_classes_that_are_not_clear_are_one_line(folder, wanted, message):
    with pytest.raises(UsageError, match=message):
        chosen(folder / "6", wanted)


def test_classes_are_known_by_the_synset_ids_of_paths_and_what_these_are_called():
    labels = ClassLabels(None, {})
    paths = {0: "n01440764_1.JPEG", 5: "n02101556_7.JPEG", 6: None}
    assert classes_of(("n02101556", "tench", "6"), labels, paths) == (0, 5, 6)
    assert classes_of(("goldfish",), ClassLabels(None, {"3": ("n01443537", "goldfish")}), {}) == (3,)


def test_images_without_labels_or_readable_shards_are_refused(tmp_path):
    write_images([LabelledImage(b"x", "x.jpg", None)], str(tmp_path / "data"), None, 10)
    with pytest.raises(UsageError, match="choose by labels, and these images have none"):
        chosen(tmp_path / "data", ALL._replace(per_class=1))
    assert chosen(tmp_path / "data", ALL._replace(images=1))[0] == [b"x"]
    (tmp_path / "data" / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="broken.parquet' cannot be read, so that which images to choose is not known"):
        chosen(tmp_path / "data", ALL._replace(images=1))


# In a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    pictures = [LabelledImage(encode(random_picture(i)), f"{i}.png", i % 3) for i in range(60)]
    write_images(pictures, str(folder / "6"), ["n01440764", "n01443537", "n02101556"], 10)
    write_images(pictures, str(folder / "2"), ["n01440764", "n01443537", "n02101556"], 30)
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_over_a_part_says_so_everywhere_and_goes_on(tiny, cli, tmp_path):
    flags = [*TINY_FLAGS, "--images", "20", "--classes", "tench", "2", "--seed", "3"]
    for shards in ("6", "2"):
        status, said = cli("run", "--data", tiny / shards, "--out", tmp_path / shards, *flags)
        assert (status, "20 of 60 images: 2 classes, 20 at random (seed 3)" in said) == (0, True), said
    answers = [
        pq.read_table(tmp_path / shards / "exemplars.parquet", columns=["channel", "rank", "image_path", "activation"])
        for shards in ("6", "2")
    ]
    assert answers[0].equals(answers[1])
    run = open_run(str(tmp_path / "6"))
    assert run.summary.scored == 20
    assert {*run.table()["label"].to_pylist()} <= {0, 2}
    assert {*run.table()["synset_name"].to_pylist()} <= {"tench", "clumber"}
    assert {*run.classes()["synset_name"].to_pylist()} == {"tench", "clumber"}
    part = "A PART OF THE DATA: 20 of 60 images"
    assert part in run._repr_html_()
    assert part in run.channel("mixed", 0)._repr_html_()
    assert cli("report", tmp_path / "6")[0] == 0
    assert part in (tmp_path / "6" / "report" / "index.html").read_text()
    page = (tmp_path / "6" / "report" / "mixed" / "0.html").read_text()
    assert "n02101556 (clumber)" in page or "n01440764 (tench)" in page
    # The command on the page, and that of status, are of the same run.
    (tmp_path / "6" / "parts" / "000001.json").unlink()
    status, said = cli("status", tmp_path / "6")
    assert "--images 20" in page
    assert "--classes 0 2" in page
    status, said = cli("run", "--data", tiny / "6", "--out", tmp_path / "6", *flags)
    assert (status, "5 already done" in said) == (0, True), said
    # Another part is another run.
    for other in (["--images", "21"], ["--images", "20", "--seed", "4"], []):
        status, said = cli("run", "--data", tiny / "6", "--out", tmp_path / "6", *TINY_FLAGS, *other)
        assert (status, "these keys differ" in said) == (2, True), said


@pytest.mark.usefixtures("ray_cluster")
def test_plan_and_check_see_the_part(tiny, cli, tmp_path):
    status, said = cli("plan", "--data", tiny / "6", *TINY_FLAGS, "--images", "20")
    assert (status, "20 images" in said) == (0, True), said
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"classes": ["n01440764", 1], "per_class": 4}))
    assert cli("run", "--config", config, "--data", tiny / "2", "--out", tmp_path / "run", *TINY_FLAGS)[0] == 0
    status, said = cli("check", tmp_path / "run")
    assert (status, "looked at 5 of 8 images" in said) == (0, True), said


@needs_shared
def test_two_of_each_class_of_the_800(tmp_path):
    found, subset, _ = chosen(SAMPLE, ALL._replace(per_class=2))
    rows = [row for file in sorted(SAMPLE.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    by_class = defaultdict(list)
    for row in rows:
        place = xxhash.xxh3_64_intdigest(b"0\n" + row["image"]["path"].encode())
        by_class[row["label"]].append((place, row["image"]["bytes"]))
    expected = [data for one in by_class.values() for _, data in sorted(one)[:2]]
    assert found == sorted(expected)
    assert subset.of == 800


# What synsets are called --------------------------------------------------------------------


def test_synsets_are_called_what_torchvision_calls_them():
    synset_ids = open_synsets()
    assert synset_ids == sorted({*synset_ids})
    assert [name_of_synset(one) for one in synset_ids] == _meta._IMAGENET_CATEGORIES
    known = {
        "n01440764": "tench",
        "n02504458": "African elephant",
        "n15075141": "toilet tissue",
        "n02012849": "crane bird",
    }
    assert {one: name_of_synset(one) for one in known} == known
    assert spelled_out("my class") == "my class"


@needs_shared
def test_the_ids_are_those_of_the_labels_in_order():
    schema = pq.read_schema(sorted(SAMPLE.glob("*.parquet"))[0])
    names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    assert names == open_synsets()


def open_synsets():
    from importlib.resources import files

    lines = (files("exemplar_ray.data") / "imagenet_synsets.txt").read_text().splitlines()
    return [line.split("\t")[0] for line in lines]
