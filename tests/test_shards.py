"""Discovering shards and reading their rows."""

import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_CLASSES, TINY_ROWS, encode, random_picture, write_tiny_data

from exemplar_ray.data.row_groups import RowGroupFile
from exemplar_ray.data.shards import Shard, discover, imagenet_schema, inspect, open_shard
from exemplar_ray.data.write_shards import LabelledImage, write_images, write_shards
from exemplar_ray.errors import ShardError, UsageError


def test_a_folder_a_glob_and_files_give_the_same_shards(tmp_path):
    paths = write_tiny_data(tmp_path / "data", shards=3)
    (tmp_path / "data" / "README.md").write_text("not a shard")
    by_folder = discover([str(tmp_path / "data")])
    assert [shard.name for shard in by_folder] == [path.name for path in paths]
    assert discover([f"{tmp_path}/data/*.parquet"]) == by_folder
    assert discover([str(path) for path in reversed(paths)] + [str(paths[0])]) == by_folder
    assert [shard.size for shard in by_folder] == [path.stat().st_size for path in paths]


def test_names_are_relative_to_what_the_shards_share(tmp_path):
    write_tiny_data(tmp_path / "a", shards=1)
    write_tiny_data(tmp_path / "b", shards=1)
    assert [shard.name for shard in discover([f"{tmp_path}/a", f"{tmp_path}/b"])] == [
        "a/train-00000-of-00001.parquet",
        "b/train-00000-of-00001.parquet",
    ]
    assert [shard.name for shard in discover([f"{tmp_path}/a"])] == ["train-00000-of-00001.parquet"]


def test_shards_of_several_file_systems_make_one_run(tmp_path):
    [path] = write_tiny_data(tmp_path / "a", shards=1)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/a/x.parquet", path.read_bytes())
    try:
        local, remote = discover([str(path), "memory://bucket/a/x.parquet"])
        assert local.uri == str(path)
        assert remote.uri == remote.name == "memory:///bucket/a/x.parquet"
    finally:
        memory.rm("/bucket", recursive=True)


def test_other_file_systems_keep_their_protocol(tmp_path):
    memory = fsspec.filesystem("memory")
    [path] = write_tiny_data(tmp_path / "data", shards=1)
    memory.pipe_file("/bucket/data/x.parquet", path.read_bytes())
    try:
        [shard] = discover(["memory://bucket/data/*.parquet"])
        assert (shard.name, shard.uri) == ("x.parquet", "memory:///bucket/data/x.parquet")
        [inspected], names = inspect([shard])
        assert (inspected.rows, names) == (TINY_ROWS, TINY_CLASSES)
        with open_shard(inspected) as reader:
            assert len(list(reader.images())) == TINY_ROWS
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("uri", ["{tmp}/nothing/*.parquet", "{tmp}/missing.parquet", "{tmp}"])
def test_nothing_to_read_is_refused(tmp_path, uri):
    with pytest.raises(UsageError, match="no parquet shard, tar or image matches"):
        discover([uri.format(tmp=tmp_path)])


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UsageError, match="cannot list 'nosuch://x'"):
        discover(["nosuch://x"])


def test_a_shard_without_an_image_column_is_refused_naming_what_it_has(tmp_path):
    pq.write_table(pa.table({"sound": [b"x"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="no image column.*sound: binary, label: int64"):
        inspect(discover([str(tmp_path)]))


def test_footers_larger_than_one_request_are_read(tmp_path):
    names = [f"class number {i} of very many" for i in range(5000)]
    [path], _ = write_images([LabelledImage(b"x", "p", 0)] * 5, str(tmp_path / "d"), names, 10)
    [shard], found = inspect(discover([str(path)]))
    assert (shard.rows, found) == (5, names)


def test_a_file_that_is_no_parquet_stays_in_the_list_without_rows(tmp_path):
    paths = write_tiny_data(tmp_path / "data", shards=2)
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    shards, names = inspect(discover([str(tmp_path / "data")]))
    assert [shard.rows for shard in shards] == [None, TINY_ROWS]
    assert names == TINY_CLASSES
    with pytest.raises(pa.ArrowInvalid):
        open_shard(shards[0])


def test_rows_come_in_order_and_selected_ones_with_label_and_path(tmp_path):
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", i % 7) for i in range(250)]
    [path], _ = write_images(images, str(tmp_path / "d"), None, 1000)
    [shard], _ = inspect(discover([str(path)]))
    with open_shard(shard) as reader:
        everything = list(reader.images())
        assert [row.row for row in everything] == list(range(250))
        assert [row.data for row in everything] == [image.data for image in images]
        assert [row.label for row in everything] == [image.label for image in images]
        wanted = [249, 0, 31, 32, 99, 100, 150, 0]
        chosen = list(reader.select(wanted))
    assert [row.row for row in chosen] == sorted(set(wanted))
    for row in chosen:
        assert row == (row.row, *images[row.row][:2], images[row.row].label)


def test_selecting_reads_only_the_row_groups_it_needs(tmp_path, monkeypatch):
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", 0) for i in range(350)]
    [path], _ = write_images(images, str(tmp_path / "d"), None, 1000)
    groups = []
    original = RowGroupFile._batches

    def batches(self, group, columns):
        groups.append(group)
        return original(self, group, columns)

    monkeypatch.setattr(RowGroupFile, "_batches", batches)
    with open_shard(discover([str(path)])[0]) as reader:
        assert [row.row for row in reader.select([120, 340])] == [120, 340]
    assert groups == [1, 3]


def test_plain_binary_images_null_images_and_missing_labels_are_taken(tmp_path):
    pq.write_table(pa.table({"image": pa.array([b"a", None, b"c"], pa.binary())}), tmp_path / "plain.parquet")
    struct = pa.array([{"bytes": b"a", "path": "p"}, None, {"bytes": None, "path": "q"}], imagenet_schema(None)[0].type)
    pq.write_table(pa.table({"image": struct, "label": pa.array([1, None, 3])}), tmp_path / "struct.parquet")
    plain, nested = discover([str(tmp_path)])
    with open_shard(plain) as reader:
        assert [row.data for row in reader.images()] == [b"a", None, b"c"]
        assert list(reader.select([2])) == [(2, b"c", None, None)]
    with open_shard(nested) as reader:
        assert [row.data for row in reader.images()] == [b"a", None, None]
        assert list(reader.select([0, 1, 2])) == [(0, b"a", "p", 1), (1, None, None, None), (2, None, "q", 3)]


def test_a_shard_with_other_rows_than_listed_is_refused(tmp_path):
    [path] = write_tiny_data(tmp_path / "data", shards=1)
    with pytest.raises(ShardError, match="changed: 10 rows, the shard list says 11"):
        open_shard(Shard("x", str(path), path.stat().st_size, rows=11))


def test_an_image_folder_becomes_shards_with_its_classes(tmp_path):
    pictures = {f"{kind}/{i}.png": encode(random_picture(i)) for kind in ("cat", "ant") for i in range(3)}
    for name, data in pictures.items():
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    paths, count = write_shards(str(tmp_path / "images"), str(tmp_path / "shards"), "train", 4)
    assert (len(paths), count) == (2, 6)
    table = pq.read_table(tmp_path / "shards")
    rows = table.to_pylist()
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    assert names == ["ant", "cat"]
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == pictures
    assert all(row["image"]["path"].startswith(names[row["label"]]) for row in rows)


def test_a_hugging_face_data_set_becomes_shards(tmp_path):
    write_tiny_data(tmp_path / "hub_copy", shards=2)
    # A local clone of a Hub data set loads through the same call as its name does.
    (tmp_path / "hub_copy" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n"
    )
    from exemplar_ray.data import write_shards as sharding

    images, names = sharding._from_hub(str(tmp_path / "hub_copy"), "train")
    paths, count = write_images(images, str(tmp_path / "again"), names, 7)
    assert (len(paths), count, names) == (3, 20, TINY_CLASSES)
    before = pq.read_table(tmp_path / "hub_copy" / "train-00000-of-00002.parquet").to_pylist()
    assert pq.read_table(paths[0]).to_pylist() == before[:7]


@pytest.mark.parametrize("source", ["empty", "no such data set/at all"])
def test_a_source_without_images_is_refused(tmp_path, source):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "empty") if source == "empty" else source
    with pytest.raises(UsageError, match="no image files|neither a folder nor a data set"):
        write_shards(source, str(tmp_path / "out"), "train", 100)


def test_shards_are_not_written_over_other_files(tmp_path):
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        write_images([LabelledImage(b"x", "p", 0)], str(tmp_path), None, 10)


def test_links_to_shards_are_shards(tmp_path):
    """The Hub's own cache is made of links."""
    [path] = write_tiny_data(tmp_path / "blobs", shards=1)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.parquet").symlink_to(path)
    (tmp_path / "snapshot" / "gone.parquet").symlink_to(tmp_path / "nowhere")
    [shard] = discover([str(tmp_path / "snapshot")])
    assert (shard.name, shard.size) == ("train.parquet", path.stat().st_size)
    assert inspect([shard])[0][0].rows == 10
