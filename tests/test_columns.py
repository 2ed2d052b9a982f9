"""Columns of images and labels: found, chosen, refused; and what a label is."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode, random_picture

from exemplar_ray.data.columns import Chosen, describe
from exemplar_ray.data.shard import identity_of_columns
from exemplar_ray.data.shards import Shard, discover, imagenet_schema, inspect, open_shard
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.exemplars.near_duplicates import pick_distinct
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.report.provenance import arguments_of
from exemplar_ray.runs.run_folder import RunFolder

IMAGE = imagenet_schema(None).field("image").type
NAN = float("nan")


def images(count=3):
    return pa.array([{"bytes": b"x%d" % i, "path": f"{i}.jpg"} for i in range(count)], IMAGE)


def write(path, features=None, statistics=True, **columns):
    """Write a shard of these columns, with Hugging Face's features."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, write_statistics=statistics)
    return path


def look(path, *chosen):
    """Return the shards, and the class names."""
    return inspect(discover([str(path)]), Chosen(*chosen))


def rows_of(shard):
    """The same rows, however they are read."""
    with open_shard(shard) as reader:
        streamed = list(reader.images())
    with open_shard(shard) as reader:
        selected = list(reader.select(range(shard.rows)))
    assert [(r.row, r.data, r.label) for r in selected] == [(r.row, r.data, r.label) for r in streamed]
    return selected


def labels_of(shard):
    return [row.label for row in rows_of(shard)]


def encoded(values, kind):
    return pa.array(values, kind).dictionary_encode()


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array([4, -1, None], pa.int64()), [4, None, None]),
        (pa.array([4, -100, 0], pa.int8()), [4, None, 0]),
        (pa.array([4, 255, None], pa.uint8()), [4, 255, None]),
        (pa.array([4, 2**40, None], pa.uint64()), [4, 2**40, None]),
        (pa.array([1.0, NAN, None], pa.float64()), [1, None, None]),
        (pa.array([1.0, -1.0, 3.0], pa.float16()), [1, None, 3]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array([decimal.Decimal("2.0"), decimal.Decimal("-1"), None], pa.decimal128(5, 1)), [2, None, None]),
        (encoded([7, None, -1], pa.int64()), [7, None, None]),
        (pa.array([None] * 3, pa.null()), [None] * 3),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_whole_numbers_of_any_type_are_labels_and_negative_ones_are_none(tmp_path, column, labels):
    [shard], names = look(write(tmp_path / "x.parquet", image=images(), label=column))
    assert (labels_of(shard), names, shard.columns) == (labels, None, None)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([[0, 2], [1], []], pa.list_(pa.int64())), "column 'label' is list<element: int64>"),
        (pa.array([{"id": 1}] * 3), "column 'label' is struct<id: int64>"),
        (pa.array([datetime.date(2020, 1, 1)] * 3), "column 'label' is date32"),
        (pa.array([b"ant"] * 3), "column 'label' is binary"),
        (pa.array([0.0, 0.5, 1.0]), r"column 'label' \(double\): label 0.5 is no whole number"),
        (pa.array([0.0, float("inf"), 1.0]), "label inf is no whole number"),
        (pa.array([0.0, 1e300, 1.0]), "no whole number of 64 bits"),
        (pa.array([decimal.Decimal("0.5")] * 3, pa.decimal128(5, 1)), r"decimal128\(5, 1\)\): label Decimal"),
    ],
)
def test_what_is_no_label_is_refused_before_the_scan(tmp_path, column, says):
    path = write(tmp_path / "odd.parquet", image=images(), label=column)
    with pytest.raises(UsageError, match=f"odd.parquet.*{says}.*--label-column") as refused:
        look(path)
    assert "\n" not in str(refused.value)
    [shard], _ = look(path, None, "none")
    assert labels_of(shard) == [None] * 3


def test_a_number_of_more_than_64_bits_fails_its_shard(tmp_path):
    [shard], _ = look(write(tmp_path / "x.parquet", image=images(), label=pa.array([0, 2**63, 1], pa.uint64())))
    with pytest.raises(ShardError, match="column 'label': label 9223372036854775808 is no whole number of 64 bits"):
        labels_of(shard)


TEXTS = (pa.string(), pa.large_string(), pa.string_view())


@pytest.mark.parametrize("kind", [*TEXTS, "dictionary"], ids=str)
def test_texts_are_classes_by_name_over_the_whole_data_set(tmp_path, kind):
    def column(values):
        return encoded(values, pa.string()) if kind == "dictionary" else pa.array(values, kind)

    write(tmp_path / "d" / "a.parquet", image=images(), label=column(["cow", None, "bee"]))
    write(tmp_path / "d" / "b.parquet", image=images(), label=column(["ant", "", "cow"]))
    write(tmp_path / "d" / "c.parquet", image=images())
    shards, names = look(tmp_path / "d")
    assert names == ["ant", "bee", "cow"]
    assert [labels_of(shard) for shard in shards] == [[2, None, 1], [0, None, 2], [None] * 3]
    assert "labels are read from column 'label', as texts of 3 classes" in describe(s.columns for s in shards)
    # A label's number is its place among the names, so that they are part of what the run is.
    identity = identity_of_columns(shards)
    assert identity.keys() == {"label_texts"}
    # As run.json has them.
    again = [Shard.from_json(json.loads(json.dumps(shard.to_json())), names) for shard in shards]
    assert again == shards
    write(tmp_path / "d" / "c.parquet", image=images(), label=column(["dog"] * 3))
    assert identity_of_columns(look(tmp_path / "d")[0]) != identity


def test_texts_and_numbers_do_not_mix_and_unreadable_shards_leave_classes_unknown(tmp_path):
    write(tmp_path / "d" / "a.parquet", image=images(), label=pa.array(["cow"] * 3))
    write(tmp_path / "d" / "b.parquet", image=images(), label=pa.array([1, 2, 3]))
    with pytest.raises(UsageError, match="are string in '.*a.parquet' and int64 in '.*b.parquet'"):
        look(tmp_path / "d")
    write(tmp_path / "d" / "b.parquet", image=images(), label=pa.nulls(3))
    assert [labels_of(shard) for shard in look(tmp_path / "d")[0]] == [[0] * 3, [None] * 3]
    (tmp_path / "d" / "b.parquet").write_bytes(b"no parquet file")
    with pytest.raises(UsageError, match="labels are texts, and '.*b.parquet' is no parquet file"):
        look(tmp_path / "d")


def test_texts_that_are_no_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("exemplar_ray.data.inspection._MOST_CLASSES", 2)
    path = write(tmp_path / "x.parquet", image=images(), label=pa.array(["a", "b", "c"]))
    with pytest.raises(UsageError, match="more than 2 different texts, which are no classes"):
        look(path)


def test_a_text_that_was_not_there_when_the_run_was_planned_fails_its_shard(tmp_path):
    [shard], _ = look(write(tmp_path / "x.parquet", image=images(), label=pa.array(["a", "b", "c"])))
    write(tmp_path / "x.parquet", image=images(), label=pa.array(["a", "b", "d"]))
    with pytest.raises(ShardError, match="label 'd' is none of the data set's classes"):
        labels_of(shard)


def test_images_without_a_label_are_no_class_of_which_there_may_be_only_so_many(tmp_path):
    path = write(tmp_path / "x.parquet", image=images(4), label=pa.array([-1] * 4))
    labels = labels_of(look(path)[0][0])
    hashes = [np.random.default_rng(i).bytes(32) for i in range(4)]
    assert pick_distinct(hashes, labels, 4, 1) == [0, 1, 2, 3]


# Columns of another name --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "feature"),
    [
        ("img", images(), None),
        ("picture", pa.array([b"x0", b"x1", b"x2"]), None),
        ("jpg", pa.array([b"x0", b"x1", b"x2"], pa.large_binary()), None),
        ("frame", images(), None),
        ("scan", pa.array([b"x0", b"x1", b"x2"]), {"_type": "Image"}),
    ],
)
def test_the_only_column_that_may_be_the_images_is_taken_and_said(tmp_path, name, column, feature):
    columns = {name: column, "sound": pa.array([b"1"] * 3), "label": pa.array([0, 1, 2])}
    features = {name: feature} if feature else None
    shards, _ = look(write(tmp_path / "x.parquet", features, **columns))
    assert [row.data for row in rows_of(shards[0])] == [b"x0", b"x1", b"x2"]
    assert describe(shard.columns for shard in shards) == [f"images are read from column '{name}'"]
    assert identity_of_columns(shards) == {"image_column": name}


@pytest.mark.parametrize(
    ("name", "column", "feature"),
    [
        ("labels", pa.array([0, 1, 2]), None),
        ("fine_label", pa.array([0, 1, 2], pa.int16()), None),
        ("classId", pa.array([0, 1, 2]), None),
        ("target", pa.array(["ant", "bee", "cow"]), None),
        ("cls", pa.array([0, 1, 2]), None),
        ("animal", pa.array([0, 1, 2]), {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}),
    ],
)
def test_the_only_column_that_may_be_the_labels_is_taken_and_said(tmp_path, name, column, feature):
    # Whole numbers, but no labels.
    others = {"width": pa.array([5] * 3), "num_labels": pa.array([1] * 3), "x": pa.array([0] * 3)}
    features = {name: feature} if feature else None
    shards, names = look(write(tmp_path / "x.parquet", features, image=images(), **others, **{name: column}))
    assert labels_of(shards[0]) == [0, 1, 2]
    assert names == (["ant", "bee", "cow"] if feature or column.type == pa.string() else None)
    assert describe(s.columns for s in shards)[0].startswith(f"labels are read from column '{name}'")
    assert identity_of_columns(shards)["label_column"] == name


def test_where_several_columns_may_be_it_the_user_chooses(tmp_path):
    features = {
        "coarse_label": {"_type": "ClassLabel", "names": ["animal"]},
        "fine_label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]},
    }
    both = {"coarse_label": pa.array([0, 0, 0]), "fine_label": pa.array([0, 1, 2])}
    path = write(tmp_path / "x.parquet", features, img=images(), mask_img=images(), **both)
    with pytest.raises(UsageError, match="may be the images: img, mask_img; choose one with --image-column"):
        look(path)
    with pytest.raises(UsageError, match="may be the labels: coarse_label, fine_label; choose one with --label-column"):
        look(path, "img")
    shards, names = look(path, "img", "coarse_label")
    assert (labels_of(shards[0]), names) == ([0, 0, 0], ["animal"])
    assert identity_of_columns(shards) == {"image_column": "img", "label_column": "coarse_label"}
    with pytest.raises(UsageError, match="has no column 'imgs' \\(--image-column\\); it has img: struct"):
        look(path, "imgs")
    with pytest.raises(UsageError, match="no shard has a column 'label' \\(--label-column\\)"):
        look(path, "img", "label")


def test_the_usual_columns_win_and_are_no_part_of_what_a_run_is(tmp_path):
    path = write(
        tmp_path / "x.parquet", image=images(), label=pa.array([0, 1, 2]), labels=pa.array([7] * 3), img=images()
    )
    shards, _ = look(path)
    assert labels_of(shards[0]) == [0, 1, 2]
    assert (shards[0].columns, identity_of_columns(shards), describe([None])) == (None, {}, [])
    assert shards[0].to_json().keys() == {"name", "uri", "size", "rows", "footer", "stamp"}
    assert look(path, "image", "label")[0] == shards
    # Not to read what is there is another answer.
    assert identity_of_columns(look(path, None, "none")[0]) == {"label_column": "none"}


def test_data_without_labels_says_so_and_is_the_run_that_it_was(tmp_path):
    write(tmp_path / "d" / "a.parquet", image=images(), tags=pa.array([[1]] * 3))
    shards, _ = look(tmp_path / "d")
    assert describe(s.columns for s in shards) == [
        "no labels: no column is called 'label' or like it (--label-column NAME)"
    ]
    assert identity_of_columns(shards) == {}
    write(tmp_path / "d" / "b.parquet", image=images(), label=pa.array([1] * 3))
    shards, _ = look(tmp_path / "d")
    assert describe(s.columns for s in shards)[0].startswith("no labels in 1 of 2 shards")
    assert identity_of_columns(shards) == {}


def test_labels_in_columns_of_different_names_are_not_put_together(tmp_path):
    write(tmp_path / "d" / "a.parquet", image=images(), label=pa.array([0, 1, 2]))
    write(tmp_path / "d" / "b.parquet", image=images(), category=pa.array([0, 1, 2]))
    with pytest.raises(UsageError, match="column 'label' of '.*a.parquet', and in 'category' of '.*b.parquet'"):
        look(tmp_path / "d")
    shards, _ = look(tmp_path / "d", None, "label")
    assert [labels_of(shard) for shard in shards] == [[0, 1, 2], [None] * 3]


def class_label(*names):
    return {"label": {"_type": "ClassLabel", "names": list(names)}}


def test_shards_that_number_their_classes_differently_are_refused(tmp_path):
    labels = pa.array([0, 1, 0])
    write(tmp_path / "d" / "a.parquet", class_label("ant", "bee"), image=images(), label=labels)
    write(tmp_path / "d" / "b.parquet", image=images(), label=labels)
    write(tmp_path / "d" / "c.parquet", class_label("ant", "bee", "cow"), image=images(), label=labels)
    assert look(tmp_path / "d")[1] == ["ant", "bee", "cow"]
    write(tmp_path / "d" / "d.parquet", class_label("ant", "cow"), image=images(), label=labels)
    with pytest.raises(UsageError, match="class 1 is 'bee' in '.*c.parquet' and 'cow' in '.*d.parquet'"):
        look(tmp_path / "d")
    # The user knows better: the numbers are the same, the names are written otherwise.
    assert inspect(discover([str(tmp_path / "d")]), numbers_are_known=True)[1] is None


# What holds an image ------------------------------------------------------------------------


def of_struct(kind):
    data = pa.array([b"x0", b"x1", None], pa.binary())
    data = data.dictionary_encode() if kind == "dictionary" else data.cast(kind)
    fields = [pa.array([1, 2, 3]), pa.array(["p", "q", "r"]), data]
    return pa.StructArray.from_arrays(fields, ["width", "path", "bytes"])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), "dictionary"], ids=str
)
def test_bytes_of_any_type_are_images(tmp_path, kind):
    nested = of_struct(kind)
    write(tmp_path / "d" / "nested.parquet", image=nested)
    write(tmp_path / "d" / "plain.parquet", image=nested.field("bytes"))
    for shard in look(tmp_path / "d")[0]:
        rows = rows_of(shard)
        assert [row.data for row in rows] == [b"x0", b"x1", None]
        assert [row.path for row in rows] == (["p", "q", "r"] if "nested" in shard.name else [None] * 3)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([[{"bytes": b"x", "path": "p"}]]), "several a row; a row is one image"),
        (pa.array(["photos/1.jpg"]), "it is string: paths or addresses"),
        (pa.array([{"path": "photos/1.jpg"}]), "paths or addresses, not the images' bytes"),
        (pa.array([[[1, 2], [3, 4]]]), "several a row"),
        (pa.array([7]), "it is int64, no bytes"),
    ],
)
def test_what_is_no_image_is_refused_saying_why(tmp_path, column, says):
    path = write(tmp_path / "x.parquet", image=column)
    for chosen in ((), ("image",)):
        with pytest.raises(UsageError, match=says) as refused:
            look(path, *chosen)
        assert "\n" not in str(refused.value)


def test_paths_without_images_are_refused_and_a_few_of_them_are_rows_without_bytes(tmp_path):
    paths = pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(3)], IMAGE)
    path = write(tmp_path / "x.parquet", image=paths)
    with pytest.raises(UsageError, match="x.parquet' holds paths of images, not their bytes"):
        look(path)
    # Where the footer does not say so, the scan does.
    [shard], _ = look(write(path, statistics=False, image=paths))
    with pytest.raises(ShardError, match="x.parquet holds paths of images, not their bytes"):
        rows_of(shard)
    mixed = pa.array([{"bytes": b"x", "path": "0.jpg"}, {"bytes": None, "path": "1.jpg"}], IMAGE)
    [shard], _ = look(write(path, image=mixed))
    assert [row.data for row in rows_of(shard)] == [b"x", None]


def test_a_run_says_which_columns_it_reads_and_goes_on_with_the_same(tmp_path, cli, ray_cluster):
    """From texts in a column of another name to names in the result."""
    kinds = ["ant", "bee", None, "cow"]
    pictures = pa.array([encode(random_picture(i)) for i in range(8)])
    write(tmp_path / "data" / "a.parquet", jpg=pictures, category=pa.array(kinds * 2), split=pa.array([0] * 8))
    arguments = ["run", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY_FLAGS, "--max-per-class", "1"]
    status, text = cli(*arguments)
    assert status == 0, text
    said = ["images are read from column 'jpg'", "labels are read from column 'category', as texts of 3 classes"]
    for line in said:
        assert line in text
        assert line in cli("status", tmp_path / "run")[1]
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    assert values["shards"][0]["columns"] == {"image": "jpg", "label": "category", "texts": True}
    assert values["class_labels"]["names"] == ["ant", "bee", "cow"]
    rows = pq.read_table(tmp_path / "run" / "exemplars.parquet", columns=["row", "label", "class_name"]).to_pylist()
    assert {(row["row"] % 4, row["label"], row["class_name"]) for row in rows} >= {(0, 0, "ant"), (2, None, None)}
    assert all(row["class_name"] == kinds[row["row"] % 4] for row in rows)
    assert "nothing to do" in cli(*arguments)[1]
    # The command that goes on names the columns.
    words = arguments_of(Plan.read(RunFolder(str(tmp_path / "run"))), str(tmp_path / "run"))
    assert "--image-column jpg --label-column category" in " ".join(words)
    assert "nothing to do" in cli(*words)[1]
    # Whose shards were looked at by someone else: the plan is read back.
    (tmp_path / "run" / "exemplars.parquet").unlink()
    status, text = cli("merge", tmp_path / "run")
    assert status == 0, text
    again = pq.read_table(tmp_path / "run" / "exemplars.parquet", columns=["row", "label", "class_name"]).to_pylist()
    assert again == rows
    status, text = cli(*arguments, "--label-column", "split")
    assert (status, "these keys differ: label_column, label_texts" in text) == (2, True), text
