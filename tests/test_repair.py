"""A shard that was silently wrong, and is right now: the same command repairs the run, and scans that shard again."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode
from PIL import Image

from exemplar_ray.data.pages import chunk_of
from exemplar_ray.data.shards import imagenet_schema
from exemplar_ray.runs.run_folder import RunFolder

SHARDS, ROWS, BROKEN = 4, 30, 2
FLAGS = [*TINY_FLAGS, "--sample", "bottom"]
ANSWER = (
    "exemplars.parquet",
    "channels.parquet",
    "classes.parquet",
    "histograms.parquet",
    "images.parquet",
    "spectrum.parquet",
)


def photograph(seed):
    """An image of which some bytes may be others, and it still is one, as are most of ImageNet's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC), "BMP")


def write_shards(folder):
    """Write shards in three row groups, whose pages have no checksums, as those of most data sets."""
    folder.mkdir()
    for shard in range(SHARDS):
        images = [{"bytes": photograph(shard * ROWS + row), "path": f"{row}.bmp"} for row in range(ROWS)]
        table = pa.table({"image": images, "label": [row % 3 for row in range(ROWS)]}, schema=imagenet_schema(None))
        path = folder / f"train-{shard:05d}.parquet"
        pq.write_table(table, path, row_group_size=10, use_dictionary=False, compression="none")
    return folder


def zeroed(content, places):
    """Zeros in the middle of an image of the second row group."""
    start, end = places[1]
    middle = (start + end) // 2 + 2000
    return content[:middle] + bytes(6000) + content[middle + 6000 :]


def flipped(content, places):
    """The highest bit another one in bytes here and there, of an image of the second row group."""
    start, end = places[1]
    damaged = bytearray(content)
    middle = (start + end) // 2 + 2000
    for place in range(middle, middle + 6000, 7):
        damaged[place] ^= 128
    return bytes(damaged)


def of_another_file(content, places, other):
    """The file with a row group of another one in it: other bytes, another footer, mostly another size."""
    tables = [pq.ParquetFile(pa.BufferReader(one)) for one in (content, other)]
    groups = [tables[0].read_row_group(0), tables[1].read_row_group(1), tables[0].read_row_group(2)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, groups[0].schema, use_dictionary=False, compression="none") as writer:
        for group in groups:
            writer.write_table(group)
    return sink.getvalue().to_pybytes()


DAMAGES = ("zeroed", "flipped", "of_another_file")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{name: content} of an undamaged data set."""
    folder = write_shards(tmp_path_factory.mktemp("whole") / "data")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def data(tmp_path, whole):
    """A copy of it."""
    (tmp_path / "data").mkdir()
    for name, content in whole.items():
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, whole, ray_cluster):
    """What a run gives where nothing happens: {name: content}."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "data").mkdir()
    for name, content in whole.items():
        (folder / "data" / name).write_bytes(content)
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *FLAGS]) == 0
    return {name: (folder / "run" / name).read_bytes() for name in ANSWER}


def answer_of(run):
    return {name: (run / name).read_bytes() for name in ANSWER}


def damaged(kind, whole):
    """Return the broken shard's name, and what it holds then."""
    names = sorted(whole)
    name, content = names[BROKEN], whole[names[BROKEN]]
    metadata = pq.ParquetFile(pa.BufferReader(content)).metadata
    places = [chunk_of(metadata.row_group(group).column(0)) for group in range(3)]
    more = [whole[names[0]]] if kind == "of_another_file" else []
    return name, globals()[kind](content, places, *more)


def scans(text):
    """Return the names of shards that were scanned."""
    return re.findall(r"scan(?: again)? \d+/\d+\s+(\S+?):", text)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_finished_run_of_a_damaged_file_is_repaired_when_the_file_is(kind, data, whole, undisturbed, cli, tmp_path):
    name, content = damaged(kind, whole)
    (data / name).write_bytes(content)
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    assert answer_of(tmp_path / "run") != undisturbed
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "parts").iterdir()}
    (data / name).write_bytes(whole[name])
    status, text = cli(*command)
    assert status == 0, text
    assert scans(text) == [name]
    assert f"shard {name} changed after it was scanned" in text
    assert answer_of(tmp_path / "run") == undisturbed
    for path in (tmp_path / "run" / "parts").iterdir():
        assert (path.read_bytes() == before[path.name]) == (not path.name.startswith(f"{BROKEN:06d}")), path
    status, text = cli(*command)
    assert (status, "nothing to do" in text) == (0, True), text


@pytest.mark.parametrize("kind", ["zeroed", "flipped"])
def test_gather_finds_a_part_of_a_damaged_file_and_has_it_scanned_again(kind, data, whole, undisturbed, cli, tmp_path):
    """Whatever the storage says of the file: here that it is the same."""
    name, content = damaged(kind, whole)
    cut = sorted(whole)[0]
    stamp = (data / name).stat()
    (data / name).write_bytes(content)
    os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (data / cut).write_bytes(whole[cut][:-100])
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 1
    for one in (name, cut):
        (data / one).write_bytes(whole[one])
    os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    status, text = cli(*command)
    assert status == 0, text
    assert scans(text) == [cut, name]
    assert re.search(rf"{name} changed: row \d+ gives .*; it is scanned again", text)
    assert f"shard {name}: its file changed (other bytes in row group 1)" in text
    assert answer_of(tmp_path / "run") == undisturbed


def test_a_file_that_is_damaged_when_its_images_are_gathered(data, whole, undisturbed, cli, tmp_path):
    """The answer is that of the file as it is, and of the file as it was when that is back."""
    name, content = damaged("flipped", whole)
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    # As if the run had ended between scan and gather.
    (tmp_path / "run" / "summary.json").unlink()
    stamp = (data / name).stat()
    (data / name).write_bytes(content)
    os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    status, text = cli(*command)
    assert status == 0, text
    assert scans(text) == [name]
    assert answer_of(tmp_path / "run") != undisturbed
    (data / name).write_bytes(whole[name])
    status, text = cli(*command)
    assert (status, scans(text)) == (0, [name]), text
    assert answer_of(tmp_path / "run") == undisturbed


def test_a_part_that_is_torn_is_made_again(data, undisturbed, cli, tmp_path):
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    torn = tmp_path / "run" / "parts" / "000001.parquet"
    torn.write_bytes(torn.read_bytes()[:-1])
    status, text = cli(*command)
    assert status == 0, text
    assert scans(text) == ["train-00001.parquet"]
    assert "parts/000001.parquet is not the file that was committed; it is scanned again" in text
    assert answer_of(tmp_path / "run") == undisturbed


def test_a_touched_file_is_read_once_and_not_scanned(data, undisturbed, cli, tmp_path):
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    for path in data.iterdir():
        os.utime(path)
    status, text = cli(*command)
    assert (status, scans(text), "nothing to do" in text) == (0, [], True), text
    assert text.count("the same") == SHARDS
    status, text = cli(*command)
    assert (status, "the same" in text, "nothing to do" in text) == (0, False, True), text
    assert answer_of(tmp_path / "run") == undisturbed


def test_merge_is_no_dead_end(data, whole, undisturbed, cli, tmp_path):
    """It does not scan, and says what will; what it was told to leave out it leaves out."""
    name, content = damaged("flipped", whole)
    stamp = (data / name).stat()
    (data / name).write_bytes(content)
    os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    command, run = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS], tmp_path / "run"
    assert cli(*command)[0] == 0
    record = (run / "parts" / f"{BROKEN:06d}.json").read_bytes()
    (data / name).write_bytes(whole[name])
    os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    status, text = cli("merge", run)
    assert (status, f"{name} changed: row" in text, "run again to scan it again" in text) == (1, True, True), text
    status, text = cli("status", run)
    assert "3 done, 1 failed" in text
    assert f"failed: {name}: {name} changed: row" in text
    (run / "parts" / f"{BROKEN:06d}.json").write_bytes(record)
    status, text = cli("merge", run, "--allow-partial")
    assert "PARTIAL: 3 of 4 shards" in text, text
    status, text = cli(*command)
    assert (status, scans(text)) == (0, [name]), text
    assert answer_of(run) == undisturbed


def test_what_is_wrong_twice_is_no_accident(data, whole, cli, tmp_path, monkeypatch):
    """Not the part's fault, and not for ever: each rerun tries once."""
    name, content = damaged("flipped", whole)
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    run = RunFolder(str(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    # The file is another one each time that it is gathered from.
    from exemplar_ray.executor import driver

    map_items = driver.map_items
    stamp = (data / name).stat()

    def turn(content):
        (data / name).write_bytes(content)
        os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    def scanning(*arguments, **options):
        turn(whole[name])
        try:
            return map_items(*arguments, **options)
        finally:
            turn(content)

    monkeypatch.setattr(driver, "map_items", scanning)
    turn(content)
    status, text = cli(*command)
    assert status == 1, text
    assert scans(text) == [name]
    assert "scanned twice, the second on" in text
    assert "the network is no function of the image, the file changes while it is read" in text
    assert run.read_json(f"failed/{BROKEN:06d}.json") is not None
    monkeypatch.undo()
    turn(whole[name])
    status, text = cli(*command)
    assert (status, scans(text)) == (0, [name]), text


def test_most_shards_are_others_is_other_data(data, whole, cli, tmp_path):
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    names = sorted(whole)
    for one, other in zip(names, names[1:] + names[:1], strict=True):
        (data / one).write_bytes(whole[other])
    status, text = cli(*command)
    assert status == 2, text
    assert "data differs: shard train-00000.parquet changed after it was scanned" in text
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_ends_while_it_repairs_is_not_answered(data, whole, undisturbed, cli, tmp_path, monkeypatch):
    name, content = damaged("flipped", whole)
    (data / name).write_bytes(content)
    command = ["run", "--data", data, "--out", tmp_path / "run", *FLAGS]
    assert cli(*command)[0] == 0
    (data / name).write_bytes(whole[name])
    from exemplar_ray.exemplars import exemplars_job

    with monkeypatch.context() as patch:
        patch.setattr(exemplars_job, "answer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli(*command)[0] == 130
    status, text = cli(*command)
    assert (status, "nothing to do" in text) == (0, False), text
    assert answer_of(tmp_path / "run") == undisturbed


def test_the_second_scan_of_channels_in_doubt_is_repaired_with_the_first(data, whole, cli, tmp_path, ray_cluster):
    name, content = damaged("flipped", whole)
    flags = [*FLAGS, "--precision", "bfloat16", "--margin", "0"]
    assert cli("run", "--data", data, "--out", tmp_path / "reference", *flags)[0] == 0
    (data / name).write_bytes(content)
    command = ["run", "--data", data, "--out", tmp_path / "run", *flags]
    status, text = cli(*command)
    assert (status, "scanning once more" in text) == (0, True), text
    (data / name).write_bytes(whole[name])
    status, text = cli(*command)
    assert status == 0, text
    assert scans(text) == [name]
    assert re.findall(r"settling \d+/\d+\s+(\S+?):", text) == [name]
    assert answer_of(tmp_path / "run") == answer_of(tmp_path / "reference")


def test_records_say_what_the_bytes_were(data, cli, tmp_path, ray_cluster):
    assert cli("run", "--data", data, "--out", tmp_path / "run", *FLAGS)[0] == 0
    record = json.loads((tmp_path / "run" / "parts" / "000000.json").read_text())
    assert [len(digest) for digest in record["contents"]] == [32, 32, 32]
    assert record["shard"]["stamp"] == f"modified {(data / 'train-00000.parquet').stat().st_mtime_ns}"
