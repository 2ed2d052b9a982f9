"""Maps, images, classes and lists that are too many or too large to be held at once."""

import hashlib
import json
import tempfile
from types import SimpleNamespace

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode, random_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan_and_gather import scan_it, shard_of, tiny
from test_spec import resolved
from test_topk import make_scores

from exemplar_ray import open_run
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shards import Shard
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars import gather, gather_tasks, list_columns, near_duplicates, parts, room_for_maps
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gather_tasks import split
from exemplar_ray.exemplars.gathered import IMAGES_SCHEMA, MAPS_SCHEMA, joined
from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column
from exemplar_ray.exemplars.near_duplicates import near_duplicates_of, pick_distinct
from exemplar_ray.exemplars.parts import Part, from_files, to_files
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.rerank.selected import Selected
from exemplar_ray.exemplars.tables import channels, row_groups
from exemplar_ray.exemplars.tables.exemplars import ImageSpool, write_exemplars
from exemplar_ray.exemplars.tallies import classes, roomy
from exemplar_ray.exemplars.tallies.classes import Classes
from exemplar_ray.exemplars.topk import NEAR_ZERO
from exemplar_ray.network.layers import Layer
from exemplar_ray.report.overview import tile_of

# Lists ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=20), st.integers(5, 12))
def test_lists_longer_than_a_chunk_are_several(lengths, most):
    values = np.arange(sum(lengths), dtype=np.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_columns, "MOST_VALUES", most)
        column = list_column(np.array(lengths, np.int64), values)
    assert all(len(chunk.values) <= most for chunk in column.chunks)
    ends = np.cumsum(lengths).tolist()
    assert column.to_pylist() == [list(range(e - n, e)) for n, e in zip(lengths, ends, strict=True)]
    read = lengths_and_values(column)
    assert (read[0].tolist(), read[1].tolist()) == (lengths, values.tolist())
    null = np.array(lengths, int) == 0
    assert list_column(np.array(lengths, np.int64), values, null).null_count == null.sum()


def test_offsets_beyond_32_bits_are_right():
    """Of zeros, which take no room: as many numbers as 64 channels, 700 ranks and maps of 224 x 224 have."""
    unit = 224 * 224
    values = np.broadcast_to(np.int8(0), (64 * 700 * unit,))
    lengths = np.full(64 * 700, unit)
    ends = np.cumsum(lengths)
    assert ends[-1] > 2**31
    cut = int(np.searchsorted(ends, list_columns.MOST_VALUES, side="right"))

    class Pieces:
        def __getitem__(self, where):
            seen.append((where.start, where.stop))
            return np.zeros(where.stop - where.start, np.int8)

    seen = []
    column = list_column(lengths, Pieces())
    assert values.shape[0] == seen[-1][1]
    assert seen == [(0, cut * unit), (cut * unit, len(values))]
    assert [len(chunk) for chunk in column.chunks] == [cut, len(lengths) - cut]
    assert len(column[-1]) == unit


# Gather --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    images = [(f"{i}.png", encode(random_picture(i))) for i in range(12)]
    shard = shard_of(tmp_path_factory.mktemp("large") / "d", images)
    spec, trunk = tiny("hardly_firing", precision="bfloat16", layer=("classifier", "mixed"))
    return spec, trunk, shard, scan_it(trunk, spec, shard).part.scores


def test_gathering_in_pieces_gives_the_same(scanned, monkeypatch):
    spec, trunk, shard, scores = scanned
    scores = scores.take(np.random.default_rng(0).permutation(len(scores.row)))
    assert (scores.ranking == NEAR_ZERO).any()
    [task] = split(spec, {0: shard}, {0: scores})
    assert task.candidates[0].tolist() == list(range(len(scores.row)))
    whole = gather_shard(trunk, spec, shard, scores)
    monkeypatch.setattr(gather_tasks, "_BYTES_PER_TASK", 6 * shard.size // shard.rows)
    pieces = [task.candidates[0] for task in split(spec, {0: shard}, {0: scores})]
    assert len(pieces) > 2
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(scores.row)))
    together = joined(pieces, [gather_shard(trunk, spec, shard, scores.take(one)) for one in pieces])
    assert together.images.equals(whole.images)
    assert together.maps.equals(whole.maps)
    for one, other in zip(together.exact, whole.exact, strict=True):
        assert one.tolist() == other.tolist()


def test_maps_in_several_chunks_are_the_same(scanned, monkeypatch):
    spec, trunk, shard, scores = scanned
    whole = gather_shard(trunk, spec, shard, scores).maps
    monkeypatch.setattr(list_columns, "MOST_VALUES", 1000)
    chunked = gather_shard(trunk, spec, shard, scores).maps
    assert chunked["activation_map"].num_chunks > 1
    assert chunked.schema == MAPS_SCHEMA
    assert chunked.equals(whole)
    with ImageSpool() as spool:
        numbers = spool.add_maps(chunked)["map_number"].to_pylist()
        kept = pa.array(spool.maps(numbers), pa.list_(pa.float16()))
    assert kept.equals(whole["activation_map"].combine_chunks())
    assert whole["activation_map"].null_count


def test_a_map_of_numbers_that_float16_lacks():
    spec = resolved(layers=(Layer("a", 1, (1, 4), (0,)),))
    maps = gather._Maps(spec, make_scores([0, 0], [1, 1], 0, [0, 1]))
    maps.keep(np.array([0, 1]), np.array([[[1e6, -1e6, 1, 2]], [[np.nan, np.inf, 3, -np.inf]]], np.float32))
    table = maps.table()
    assert table["peak_x"].to_pylist() == [0, 1]
    assert table["activation_map"][0].as_py() == [65504.0, -65504.0, 1.0, 2.0]
    assert str(table["activation_map"][1].as_py()) == "[nan, inf, 3.0, -inf]"


def test_more_maps_than_there_is_room_for_are_refused_before_the_scan(monkeypatch):
    spec = resolved(layers=(Layer("features.0", 64, (224, 224), tuple(range(64))),), top_k=700)
    shard = Shard("a.parquet", "/a.parquet", 1, 100_000, "x")
    usage = type("usage", (), {"free": 4_000_000_000})
    monkeypatch.setattr(room_for_maps.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UsageError, match=r"maps take 4 GB.* has 4 GB free; lower --top-k \(now 700\)"):
        room_for_maps.refuse_more_maps_than_room(Plan(spec, [shard], ClassLabels(), {}))
    few = Shard("a.parquet", "/a.parquet", 1, 100, "x")
    room_for_maps.refuse_more_maps_than_room(Plan(spec, [few], ClassLabels(), {}))


def test_a_full_temporary_folder_is_said(monkeypatch):
    class Full:
        def __call__(self, *_):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

        flush = write = tell = __call__

    with ImageSpool() as spool:
        spool._file.close()
        spool._file = Full()
        spool._file.seek = lambda *_: 0
        images = {"row": [0], "label": [0], "path": ["a"], "bytes": [b"x"], "width": [1]}
        images |= {"content": [bytes(32)], "hash": [bytes(32)]}
        with pytest.raises(UsageError, match="has no room .*No space left on device.*set TMPDIR"):
            spool.add(0, pa.table({**images, "height": [1]}, schema=IMAGES_SCHEMA))


# The table -----------------------------------------------------------------------------------


def test_row_groups_grow_only_where_images_repeat():
    sizes = np.full(1000, 100_000)
    none = np.zeros(1000, np.int64)
    unique = row_groups.row_groups(np.arange(1000), sizes, none, 100)
    assert [len(group) for group in unique] == [100] * 10
    repeating = row_groups.row_groups(np.arange(1000) % 50, sizes, none, 100)
    assert repeating == [range(1000)]
    large = row_groups.row_groups(np.arange(1000) % 50, sizes * 100, none, 100)
    assert [len(group) for group in large] == [107] * 9 + [37]  # as much as a reader can unpack
    larger_than_any = row_groups.row_groups(np.arange(3), np.full(3, 2_000_000_000), none[:3], 100)
    assert larger_than_any == [range(1), range(1, 2), range(2, 3)]
    # Maps are read along with images.
    with_maps = row_groups.row_groups(np.arange(1000) % 50, sizes, none + 1_000_000, 100)
    assert [len(group) for group in with_maps] == [263, 263, 263, 211]
    assert row_groups.row_groups(none[:0], none[:0], none[:0], 100) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 9), st.integers(0, 40 << 20)), max_size=60), st.integers(1, 9))
def test_row_groups_hold_every_row_once(rows, step):
    image = np.array([number for number, _ in rows], np.int64)
    sizes = np.array([0 if number < 0 else (number + 1) * (4 << 20) for number, _ in rows], np.int64)
    others = np.array([other for _, other in rows], np.int64)
    groups = row_groups.row_groups(image, sizes, others, step)
    assert [row for group in groups for row in group] == list(range(len(rows)))
    for group in groups:
        assert len(group) == 1 or sizes[group].sum() + others[group].sum() <= row_groups._MOST_UNPACKED
        if len(group) > step:
            once = sum({image[row]: sizes[row] for row in group}.values())
            assert once + others[group].sum() <= row_groups._MOST_BYTES or once == sum(
                {image[row]: sizes[row] for row in group[:step]}.values()
            )
            assert 0 < 2 * once <= sizes[group].sum()


def answer(folder, images, channel_count=40, top_k=5, copies=1):
    """Write exemplars that show the same images, and copies of them, again and again; return the file and what is in
    it."""
    random = np.random.default_rng(0)
    data = [random.bytes(size) for size in images] * copies
    spec = resolved(layers=(Layer("a", channel_count, (2, 2), tuple(range(channel_count))),), top_k=top_k)
    plan = Plan(spec, [Shard("s.parquet", "/s.parquet", 1, len(data))], ClassLabels(["one", "two"]), {})
    count = channel_count * top_k
    rows = np.concatenate([random.choice(len(data), top_k, replace=False) for _ in range(channel_count)])
    scores = make_scores(np.repeat(np.arange(channel_count), top_k), random.random(count), 0, rows)
    values = [[1.0, 2.0, 3.0, float(i)] for i in range(count)]
    maps = pa.table([[0] * count, [1] * count, values], schema=MAPS_SCHEMA)
    described = {"row": range(len(data)), "label": [1] * len(data), "path": [f"{i}.jpg" for i in range(len(data))]}
    described |= {"bytes": data, "hash": [bytes(32)] * len(data), "width": [50] * len(data), "height": [40] * len(data)}
    described["content"] = [hashlib.sha256(one).digest() for one in data]
    names = ["top" if i % 7 else "distinct" for i in range(count)]
    ranks = np.tile(np.arange(1, top_k + 1, dtype=np.int32), channel_count)
    with ImageSpool() as spool:
        spool.add(0, pa.table({k: list(v) for k, v in described.items()}, schema=IMAGES_SCHEMA))
        selected = Selected(scores, names, ranks, [None] * count, spool.add_maps(maps), 0.0, [], [], {}, [])
        write_exemplars(str(folder / "exemplars.parquet"), plan, selected, np.zeros(count), spool, None)
    expected = [data[row] if name == "top" else None for row, name in zip(rows, names, strict=True)]
    return folder / "exemplars.parquet", expected, values


@pytest.mark.parametrize("most_unpacked", [None, 8_000_000])
def test_a_result_is_about_as_large_as_its_images(tmp_path, monkeypatch, most_unpacked):
    images = [100_000 + i for i in range(20)]
    if most_unpacked:
        monkeypatch.setattr(row_groups, "_MOST_UNPACKED", most_unpacked)
    path, expected, values = answer(tmp_path, images)
    groups = pq.read_metadata(path).num_row_groups
    assert groups == (3 if most_unpacked else 1)
    assert path.stat().st_size < groups * 1.02 * sum(images)
    assert sum(len(one or b"") for one in expected) > 8 * sum(images)
    table = pq.read_table(path)
    assert [row and row["bytes"] for row in table["image"].to_pylist()] == expected
    assert table["activation_map"].to_pylist() == values
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    # As it is read where its images stand as often as they are shown, with the same types and metadata.
    plain = tmp_path / "plain.parquet"
    pq.write_table(table, plain, use_dictionary=False)
    assert plain.stat().st_size > 8 * sum(images)
    assert table.schema.equals(pq.read_schema(plain), check_metadata=True)
    assert table.combine_chunks().equals(pq.read_table(plain).combine_chunks())
    packed = pq.read_table(path, read_dictionary=["image.bytes"]).combine_chunks()
    assert packed["image"].nbytes < 1.1 * sum(images)
    assert packed["image"].to_pylist() == table["image"].to_pylist()
    for number, file in enumerate((path, plain)):
        of_duckdb = duckdb.sql(f"SELECT image.bytes FROM '{file}' ORDER BY channel, rank").fetchall()
        assert [row[0] for row in of_duckdb] == expected
        assert [row and row["bytes"] for row in polars.read_parquet(file)["image"].to_list()] == expected
        assert [row and row["bytes"] for row in pandas.read_parquet(file)["image"]] == expected
        cache = str(tmp_path / f"cache{number}")
        data = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=cache)
        assert data.features["image"] == datasets.Image()
        undecoded = data.cast_column("image", datasets.Image(decode=False))
        assert [row and row["bytes"] for row in undecoded["image"]] == expected


def test_copies_of_an_image_stand_in_the_result_once(tmp_path):
    images = [100_000 + i for i in range(20)]
    path, expected, _ = answer(tmp_path, images, copies=3)
    assert path.stat().st_size < 1.02 * sum(images)
    found = pq.read_table(path)["image"].to_pylist()
    assert [row and row["bytes"] for row in found] == expected
    # Each under its own name.
    assert len({row["path"] for row in found if row}) > len({row["bytes"] for row in found if row}) == len(images)


def test_images_beyond_what_one_row_group_unpacks(tmp_path):
    """2.2 GB shown of 20 MB: in the file twenty images a row group, in memory as many."""
    path, expected, _ = answer(tmp_path, [1_000_000] * 20, channel_count=440)
    shown = sum(len(one or b"") for one in expected)
    assert shown > 1.8e9
    assert path.stat().st_size < 1.02 * 2 * 20_000_000
    lengths = duckdb.sql(f"SELECT sum(octet_length(image.bytes)) FROM '{path}'").fetchall()
    assert lengths == [(shown,)]
    packed = pq.read_table(path, columns=["image"], read_dictionary=["image.bytes"]).combine_chunks()["image"].chunk(0)
    assert packed.nbytes < 25_000_000
    assert [packed[at].as_py() and packed[at].as_py()["bytes"] == expected[at] for at in range(1, 2200, 190)]


def test_images_that_do_not_repeat_take_no_more_room(tmp_path):
    path, expected, _ = answer(tmp_path, [3000 + i for i in range(1000)])
    table = pq.read_table(path)
    assert [row and row["bytes"] for row in table["image"].to_pylist()] == expected
    each = [set(filter(None, expected[start : start + 100])) for start in range(0, 200, 100)]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [100, 100]
    for group, images in enumerate(each):
        column = metadata.row_group(group).column(11)
        assert column.path_in_schema == "image.bytes"
        assert column.total_compressed_size < sum(map(len, images)) + 10 * 100


# Classes -------------------------------------------------------------------------------------


def tallied(values, labels, pieces=3):
    tally = Classes.empty(values.shape[1])
    for some, of in zip(np.array_split(values, pieces), np.array_split(labels, pieces), strict=True):
        tally.update(some, of)
    return tally


@pytest.mark.parametrize("holes", [False, True])
def test_classes_in_files_and_in_blocks_are_the_same(monkeypatch, holes):
    random = np.random.default_rng(0)
    values = random.gamma(0.5, 1, (300, 11)).astype(np.float32)
    if holes:
        values[random.random(values.shape) < 0.05] = np.nan
    labels = random.integers(-3, 40, 300)
    layers = (Layer("a", 11, None, tuple(range(11))), Layer("b", 1, None, (0,)))
    spec = resolved(layers=layers)

    def part():
        part = Part.empty(spec)
        for readout, some in enumerate((values, values[:, :1])):
            for tallies in part.tallies.values():
                tallies[readout].update(some, labels)
        return part

    expected, files = part(), to_files(part(), spec)
    small, plan = from_files(files, 0, spec), Plan(spec, [], ClassLabels(["zero", "one"]), {})
    with tempfile.NamedTemporaryFile() as file:
        channels.write_classes(file.name, plan, small)
        rows = pq.read_table(file.name)
    monkeypatch.setattr(roomy, "MOST_IN_MEMORY", 100)
    monkeypatch.setattr(classes, "CELLS_PER_BLOCK", 100)
    monkeypatch.setattr(classes, "_CELLS_PER_STEP", 30)
    monkeypatch.setattr(parts, "_BYTES_PER_GROUP", 3000)
    monkeypatch.setattr(channels, "_ROWS_PER_GROUP", 64)
    in_files = part()
    assert isinstance(in_files.classes[0].total, np.memmap)
    read = from_files(to_files(in_files, spec), 0, spec)
    assert pq.ParquetFile(pa.BufferReader(to_files(in_files, spec)["classes.parquet"])).num_row_groups > 1
    for one, other in [
        *zip(in_files.classes, expected.classes, strict=True),
        *zip(read.classes, small.classes, strict=True),
    ]:
        for name in ("labels", "images", "total", "maximum"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name, column in other.columns().items():
            np.testing.assert_array_equal(one.columns()[name], column)
        assert (one.counts.shape[1] == 1) == (not holes or one.total.shape[1] == 1)
    merged = read.classes[0].merge(in_files.classes[0])
    np.testing.assert_array_equal(merged.images, 2 * expected.classes[0].images)
    with tempfile.NamedTemporaryFile() as file:
        channels.write_classes(file.name, plan, read)
        assert pq.read_table(file.name).equals(rows)
        assert pq.ParquetFile(file.name).num_row_groups == -(-len(rows) // 64)


def test_labels_may_be_any_numbers_and_negative_ones_are_none():
    values = np.ones((6, 2), np.float32)
    tally = tallied(values, np.array([1_000_000_007, -1, 2**62, -(2**62), -100, 1_000_000_007]))
    assert tally.labels.tolist() == [1_000_000_007, 2**62]
    assert tally.images[:, 0].tolist() == [2, 1]
    assert Classes.from_table(tally.to_table()).labels.tolist() == tally.labels.tolist()


def test_a_worker_holds_many_classes_of_many_channels(monkeypatch):
    """What numpy has in memory follows the limit, not the classes."""
    import tracemalloc

    monkeypatch.setattr(roomy, "MOST_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(classes, "CELLS_PER_BLOCK", 1 << 16)
    values = np.random.default_rng(0).random((250, 1000), np.float32)
    tally = Classes.empty(1000)
    tracemalloc.start()
    for block in range(16):
        tally.update(values, np.arange(250) + 250 * block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tally.total.nbytes + tally.maximum.nbytes == 48_000_000
    assert peak < 16_000_000


# Near-duplicates -----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), max_size=30), st.integers(1, 8), st.integers(1, 3))
def test_near_duplicates_do_not_depend_on_how_many_are_compared_at_once(images, block, most):
    hashes = [bytes([number * 85] * 32) for number, _ in images]
    labels = [label if label > -2 else None for _, label in images]
    expected = near_duplicates_of(hashes), pick_distinct(hashes, labels, 5, most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_ROWS_PER_BLOCK", block)
        assert (near_duplicates_of(hashes), pick_distinct(hashes, labels, 5, most)) == expected


def test_images_without_a_label_are_of_no_class():
    hashes = [bytes([i * 85] * 32) for i in range(4)]
    for none in (None, -1, -100):
        assert pick_distinct(hashes, [none] * 4, 4, 1) == [0, 1, 2, 3]
    assert pick_distinct(hashes, [-1, 5, 5, -1], 4, 1) == [0, 1, 3]


def test_an_overview_of_an_older_result_has_no_class_minus_1():
    rows = [{"label": label, "image_path": None} for label in (-1, 4, None, 4, -100)]
    exemplars = [SimpleNamespace(row=row, class_text="") for row in rows]
    channel_row = {"channel": 0, "selectivity": 0.0, "active_fraction": 1.0, "q01": 0.0, "q50": 0.0, "q99": 0.0}
    sample = SimpleNamespace(name="top", exemplars=exemplars, settled=True)
    shown = SimpleNamespace(samples=[sample], channel_row=channel_row, classes=[])
    assert tile_of(shown, None, 0, None).labels == [4]


# A run ---------------------------------------------------------------------------------------


def test_a_run_in_pieces_over_data_with_odd_labels(tmp_path, cli, ray_cluster, monkeypatch):
    """Labels of a test set (-1) beside hashed ones."""
    labels = [-1, 1_000_000_007, 2**40, -100]
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", labels[i % 4]) for i in range(24)]
    write_images(images, str(tmp_path / "data"), None, 12)
    flags = [*TINY_FLAGS, "--sample", "bottom", "random", "--max-per-class", "1", "--class-top-k", "1"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "one", *flags)[0] == 0
    monkeypatch.setattr(gather_tasks, "_BYTES_PER_TASK", 30_000)
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "two", *flags)[0] == 0
    for name in ("exemplars", "images", "classes", "class_exemplars", "channels"):
        one, two = ((tmp_path / run / f"{name}.parquet").read_bytes() for run in ("one", "two"))
        assert one == two, name
    run = open_run(str(tmp_path / "one"))
    assert set(run.table()["label"].to_pylist()) == {None, 1_000_000_007, 2**40}
    assert set(run.classes()["label"].to_pylist()) == {1_000_000_007, 2**40}
    assert set(run.class_exemplars()["label"].to_pylist()) == {1_000_000_007, 2**40}
    distinct = run.table(sample="distinct").to_pandas()
    assert (distinct.groupby("channel").size() == 3).all()
    assert run.summary.beyond_rounding == 0
    assert cli("report", tmp_path / "one")[0] == 0
    pages = "".join(page.read_text() for page in (tmp_path / "one" / "report").rglob("*.html"))
    assert "class -1" not in pages
    assert "class 1000000007" in pages
