"""Tars as WebDataset has them: which samples there are, what is read of them and in how few requests, torn ones."""

import gzip
import io
import json
import tarfile
from dataclasses import replace

import fsspec
import pytest
from conftest import encode, random_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images_as_people_have_them import samples_of, write_tar
from test_row_groups import counting_server, images_of

from exemplar_ray.data.columns import Chosen
from exemplar_ray.data.footers import PointerError
from exemplar_ray.data.formats import tar as tar_format
from exemplar_ray.data.formats.registry import describe
from exemplar_ray.data.shard import identity_of_columns
from exemplar_ray.data.shards import Shard, discover, inspect, open_shard
from exemplar_ray.data.tar_samples import Piece, Stream, samples
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.exemplars.gather_job import _as_scanned
from exemplar_ray.exemplars.plan import ScannedShard
from exemplar_ray.runs.records import CompletionRecord

PICTURE = encode(random_picture(1))


def look(*data, image=None, label=None):
    shards, names = inspect(discover([str(uri) for uri in data]), Chosen(image, label))
    return shards, names


def read(shard, wanted=None):
    """All rows, held against what is read of some of them, with the places that the scan has found and without."""
    with open_shard(shard) as reader:
        rows = list(reader.images())
        assert reader.rows == len(rows)
        contents, places = reader.contents, reader.places
    wanted = range(len(rows) + 2) if wanted is None else wanted
    for known in (None, places):
        with open_shard(replace(shard, places=known)) as reader:
            assert list(reader.select(wanted)) == [row for row in rows if row.row in set(wanted)]
    with open_shard(shard) as reader:
        assert reader.contents_now() == contents
    return rows


def test_a_row_is_a_sample_in_the_tars_order(tmp_path):
    members = [
        ("./train/b.x.JPG", PICTURE),
        ("./train/b.cls", b"7\n"),
        ("./train/b.json", b'{"a": 1}'),
        ("train/a.txt", b"a caption"),
        ("train/a.png", PICTURE + b"a"),
        ("train/a.cls", b" 0 "),
        ("other/a.webp", PICTURE + b"o"),
        ("train/._c.png", b"of a Mac"),
        ("__MACOSX/train/c.png", b"of a Mac"),
        ("train/c.png", b""),
        ("train/c.cls", b""),
        ("README", b"no dot"),
        ("train/d.json", b"{}"),
        ("train/d.cls", b"-1"),
    ]
    [shard], names = look(write_tar(tmp_path / "a.tar", members))
    assert (shard.format, shard.rows, shard.about, names) == ("tar", None, 5, None)
    assert shard.columns is None
    assert identity_of_columns([shard]) == {}
    assert [tuple(row) for row in read(shard)] == [
        (0, PICTURE, "train/b.x.JPG", 7),
        (1, PICTURE + b"a", "train/a.png", 0),
        (2, PICTURE + b"o", "other/a.webp", None),
        (3, b"", "train/c.png", None),
        # It has no image: such a row is skipped as one that cannot be decoded.
        (4, None, "train/d", None),
    ]
    assert Shard.from_json(shard.to_json()) == shard


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=30),
    long_name=st.booleans(),
    chosen=st.sets(st.integers(0, 31)),
    piece=st.integers(1, 4000),
)
def test_whatever_the_headers_are(tmp_path, kind, sizes, long_name, chosen, piece):
    """Long names take headers of their own; Python's tarfile is the oracle."""
    path, expected = tmp_path / "a.tar", []
    with tarfile.open(path, "w", format=kind) as archive:
        archive.addfile(tarfile.TarInfo("./"))
        for i, size in enumerate(sizes):
            folder = ("müsli/" + "long/" * 30) if long_name and kind != tarfile.USTAR_FORMAT else "d/"
            content = bytes([i]) * size
            for name, data in ((f"{folder}{i}.png", content), (f"{folder}{i}.cls", str(i).encode())):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 1.5
                archive.addfile(member, io.BytesIO(data))
            expected.append((i, content, f"{folder}{i}.png", i))
    [shard], _ = look(path)
    before, tar_format._PIECE = tar_format._PIECE, piece
    try:
        assert [tuple(row) for row in read(shard, chosen)] == expected
    finally:
        tar_format._PIECE = before


# Images and labels ------------------------------------------------------------------------


def test_where_a_sample_has_several_images_the_user_chooses(tmp_path):
    members = [("0.jpg", b"image"), ("0.seg.png", b"mask"), ("0.cls", b"3"), ("1.jpg", b"i"), ("1.seg.png", b"m")]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UsageError, match="several images in sample '0': jpg, seg.png; choose one with --image-column"):
        look(path)
    [shard], _ = look(path, image="JPG")
    assert [row.data for row in read(shard)] == [b"image", b"i"]
    assert identity_of_columns([shard]) == {"image_column": "jpg"}
    assert describe([shard]) == ["images are read from member 'jpg'"]
    assert [row.data for row in read(look(path, image="seg.png")[0][0])] == [b"mask", b"m"]
    with pytest.raises(UsageError, match=r"no image in its first samples, but cls, jpg, seg.png; --image-column NAME"):
        look(path, image="webp")
    # A later sample fails its shard.
    [shard], _ = look(write_tar(path, [*samples_of([(PICTURE, 0)] * 200), *members]))
    with pytest.raises(ShardError, match="a.tar' has several images in sample '0': jpg, seg.png"):
        read(shard)


def test_a_tar_without_images_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("n01440764.tar", b"x"), ("n01443537.tar", b"y")])
    with pytest.raises(UsageError, match="has no image in its first samples, but tar; --image-column NAME says"):
        look(path)


def test_texts_are_classes_of_all_tars(tmp_path):
    first = write_tar(tmp_path / "d" / "a.tar", samples_of([(PICTURE, "cow"), (PICTURE, None), (PICTURE, "bee")]))
    write_tar(tmp_path / "d" / "b.tar", samples_of([(PICTURE, "ant\n")]))
    shards, names = look(tmp_path / "d")
    assert names == ["ant", "bee", "cow"]
    assert [[row.label for row in read(shard)] for shard in shards] == [[2, None, 1], [0]]
    assert describe(shards) == ["labels are read from member 'cls', as texts of 3 classes"]
    assert identity_of_columns(shards).keys() == {"label_texts"}
    # What was not there when the run was planned fails its shard.
    write_tar(first, samples_of([(PICTURE, "cow"), (PICTURE, None), (PICTURE, "cat")]))
    with pytest.raises(ShardError, match="a.tar: sample '000002': member 'cls': label 'cat' is none of the data set's"):
        read(shards[0])
    write_tar(first, samples_of([(PICTURE, "cow")] * 9))
    first.write_bytes(first.read_bytes()[:20_000])
    with pytest.raises(UsageError, match="labels are texts, and those of '.*a.tar' cannot be read: a.tar is torn"):
        look(tmp_path / "d")


def test_labels_by_another_name_none_and_those_that_are_none(tmp_path):
    members = [("0.png", PICTURE), ("0.cls", b"1"), ("0.Kind", b"bee"), ("0.json", b'{"label": 3}'), ("0.txt", b"a\nb")]
    path = write_tar(tmp_path / "a.tar", members)
    shards, names = look(path, label="kind")
    assert ([row.label for row in read(shards[0])], names) == ([0], ["bee"])
    assert identity_of_columns(shards).keys() == {"label_column", "label_texts"}
    assert describe(shards) == ["labels are read from member 'kind', as texts of 1 classes"]
    for chosen in ("json", "txt"):
        with pytest.raises(
            UsageError, match=f"member '{chosen}': label .* is neither a whole number nor a name in one"
        ):
            look(path, label=chosen)
    with pytest.raises(UsageError, match="no shard has a column 'class'"):
        look(path, label="class")
    shards, _ = look(path, label="none")
    assert [row.label for row in read(shards[0])] == [None]
    assert identity_of_columns(shards) == {"label_column": "none"}
    # Labels that begin later, and texts among numbers, are told of.
    unlabelled = list(samples_of([(PICTURE, None)] * 400))
    write_tar(path, unlabelled)
    shards, _ = look(path)
    assert describe(shards) == ["no labels: no member is called 'cls' or like it (--label-column NAME)"]
    write_tar(path, [*unlabelled, *samples_of([(PICTURE, 5)], first=400)])
    with pytest.raises(
        ShardError, match=r"sample '000400' has a label \('cls'\), and the first ones have none; give all"
    ):
        read(look(path)[0][0])
    assert len(read(look(path, label="none")[0][0])) == 401
    write_tar(path, samples_of([(PICTURE, 0)] * 400 + [(PICTURE, "bee")]))
    with pytest.raises(ShardError, match="sample '000400': member 'cls': label 'bee' is no whole number, as the first"):
        read(look(path)[0][0])


def test_a_sample_that_is_larger_than_what_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_format, "_LOOKED_AT", 4096)
    [shard], names = look(write_tar(tmp_path / "a.tar", samples_of([(bytes(9000), "bee")] * 5)))
    # The end of a tar is filled up.
    assert (names, shard.about) == (["bee"], 6)
    assert [row.label for row in read(shard)] == [0] * 5


# What is no whole tar ---------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    """A tar of 150 samples; its bytes."""
    images = [(encode(random_picture(i, 20, 20)), i % 7) for i in range(150)]
    return write_tar(tmp_path / "a.tar", samples_of(images)).read_bytes()


def fails(path, says):
    """The tar can be listed, and fails when it is scanned."""
    [shard], _ = look(path)
    with pytest.raises(ShardError, match=says):
        read(shard)
    return shard


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.3, 0.5, 0.77, 0.99])
def test_a_torn_tar_says_where_it_ends(tmp_path, whole, share):
    path, size = tmp_path / "a.tar", int(share * len(whole))
    path.write_bytes(whole[:size])
    fails(
        path, f"a.tar is torn: it ends at byte {size}, (without the mark of its end|within '.*', which goes on to byte)"
    )


def test_a_tar_that_ends_between_samples_is_torn_too(tmp_path):
    [shard], _ = look(write_tar(tmp_path / "a.tar", samples_of([(PICTURE, 0)] * 10), end=False))
    assert shard.about == 10
    fails(tmp_path / "a.tar", "a.tar is torn: .* without the mark of its end; restore the file")


def test_damage_in_the_middle_is_not_the_end(tmp_path, whole):
    path, damaged = tmp_path / "a.tar", bytearray(whole)
    start = damaged.index(b"000130.png")
    damaged[start + 3] ^= 1
    path.write_bytes(damaged)
    fails(path, f"a.tar is damaged, or no tar: what stands at byte {start} is no header of a file in it .bad checksum")
    path.write_bytes(whole + whole)
    fails(path, "a.tar goes on behind the mark of its end, at byte .* with tar --ignore-zeros")
    path.write_bytes(whole + bytes(5 << 20))
    assert len(read(look(path)[0][0])) == 150
    path.write_bytes(b"no tar" * 1000)
    shard = fails(path, "a.tar is damaged, or no tar: what stands at byte 0")
    assert shard.footer is None
    # It may have come to be one since.
    path.write_bytes(whole)
    assert len(read(replace(shard, size=len(whole)))) == 150


def test_a_sample_with_two_members_of_one_name(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", PICTURE), ("1.png", b"x"), ("1.PNG", b"y")])
    fails(path, "a.tar: sample '1' has several members 'png'")


def test_compressed_tars_and_pointers_are_refused_before_the_scan(tmp_path, whole):
    for name in ("a.tar.gz", "a.tgz", "a.TAR.XZ", "a.tar.zst"):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(gzip.compress(whole))
        for data in (tmp_path / "d" / name, tmp_path / "d", tmp_path / "d" / "*"):
            with pytest.raises(UsageError, match=f"{name}' is a compressed tar, .*; decompress it, and give the .tar"):
                look(data)
        (tmp_path / "d" / name).unlink()
    (tmp_path / "d" / "a.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(
        UsageError, match="a.tar' is compressed, so that no image in it can be found without reading all"
    ):
        look(tmp_path / "d")
    (tmp_path / "d" / "a.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:7\n")
    with pytest.raises(PointerError, match="a.tar' is a Git LFS pointer, not the file"):
        look(tmp_path / "d")


def test_another_tar_is_another(tmp_path, whole):
    [shard], _ = look(tmp_path / "a.tar")
    recorded = shard.to_json()
    with open_shard(shard) as reader:
        assert len(list(reader.images())) == 150
        contents, places = reader.contents, reader.places
    changed = bytearray(whole)
    changed[whole.index(b"000130.png") + 512 + 70] ^= 1
    (tmp_path / "a.tar").write_bytes(changed)
    [other], _ = look(tmp_path / "a.tar")
    assert other.change_since(recorded) is None
    with open_shard(other) as reader:
        assert [one == two for one, two in zip(reader.contents_now(), contents, strict=True)] == [True, False]
    changed[512 + 70] ^= 1
    (tmp_path / "a.tar").write_bytes(changed)
    assert "as then, but another beginning: SHA-256" in look(tmp_path / "a.tar")[0][0].change_since(recorded)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 5)
    assert look(tmp_path / "a.tar")[0][0].change_since(recorded) == f"{len(whole)} bytes then, 30 now"
    with pytest.raises(ShardError, match=f"a.tar changed: {len(whole)} bytes when it was listed, 30 now"):
        open_shard(shard)
    # Rows are looked for where the scan found them.
    (tmp_path / "a.tar").write_bytes(whole[:512] + whole[:-512])
    with open_shard(replace(shard, places=places)) as reader, pytest.raises(ShardError, match="row 7"):
        list(reader.select([7]))


# What reading costs -----------------------------------------------------------------------


def test_a_tar_is_read_once_in_large_pieces_and_rows_in_a_request_each(tmp_path, monkeypatch):
    """1,000 images of 30 kB; pieces of a megabyte."""
    images = [content or b"x" for content in images_of(1000, 30_000)]
    write_tar(tmp_path / "a.tar", samples_of((content, i) for i, content in enumerate(images)))
    monkeypatch.setattr(tar_format, "_PIECE", 1 << 20)
    monkeypatch.setattr(tar_format, "_LOOKED_AT", 1 << 18)
    with counting_server(tmp_path) as (url, asked):
        [listed] = discover([f"{url}/a.tar"])
        asked.clear()
        [shard], _ = inspect([listed])
        # Once, for the first samples.
        assert [size for method, size in asked if method == "GET"] == [1 << 18]
        assert shard.about == pytest.approx(1000, rel=0.3)
        asked.clear()
        with open_shard(shard) as reader:
            for row, image in enumerate(reader.images()):
                assert (image.row, image.data, image.label) == (row, images[row], row)
            places, cost = reader.places, reader.cost()
        assert (len(asked), sum(size for _, size in asked)) == (cost.requests, shard.size)
        assert cost.requests == -(-shard.size // (1 << 20))
        asked.clear()
        wanted = [3, 250, 251, 777, 999]
        with open_shard(replace(shard, places=places)) as reader:
            assert [image.data for image in reader.select(wanted)] == [images[row] for row in wanted]
        assert len(asked) == len(wanted)
        assert sum(size for _, size in asked) < sum(len(images[row]) for row in wanted) + len(wanted) * 6 * 512
        # Who does not know where rows are goes from header to header, and stops at the last.
        asked.clear()
        with open_shard(shard) as reader:
            assert [image.data for image in reader.select([3, 20])] == [images[3], images[20]]
        assert len(asked) == 1


def test_what_the_scan_notes_is_what_gather_reads_by(tmp_path, whole):
    [shard], _ = look(tmp_path / "a.tar")
    with open_shard(shard) as reader:
        rows, places = len(list(reader.images())), reader.places
    facts = {"rows": rows, "scored": rows, "skipped": 0, "device": "cpu", "skipped_images": [], "not_finite": []}
    facts["places"] = places
    record = CompletionRecord("f", "shard", shard.to_json(), json.loads(json.dumps(facts)), 1.0, "host", "now")
    scanned = _as_scanned(shard, ScannedShard.of(record))
    assert (list(scanned.places), scanned.rows, scanned.expected_rows) == (places, None, 150)
    assert scanned.to_json() == {**shard.to_json(), "about": 150}


@pytest.mark.usefixtures("whole")
def test_a_machines_copy_of_a_tar_is_made_by_who_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EXEMPLAR_RAY_SHARD_CACHE", str(tmp_path / "copies"))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    try:
        # What this file system calls `created` is no stamp.
        [shard] = [replace(one, stamp="ETag 1") for one in discover(["memory://bucket/a.tar"])]
        [shard], _ = inspect([shard])
        assert not (tmp_path / "copies").exists()
        assert len(read(shard)) == 150
        assert [copy.suffix for copy in (tmp_path / "copies").iterdir()] == [".tar"]
    finally:
        memory.rm("/bucket", recursive=True)


def test_memory_is_that_of_a_few_pieces(tmp_path):
    images = [(bytes([i % 256]) * 10_000, None) for i in range(500)]
    content = write_tar(tmp_path / "a.tar", samples_of(images)).read_bytes()
    stream = Stream(lambda start, end: content[start:end], len(content), 50_000)
    most = 0
    for _ in samples(stream, "a.tar"):
        most = max(most, sum(len(piece) for _, piece in stream._pieces))
    assert most <= 3 * 50_000
    assert len(list(samples(Piece(content), "a.tar"))) == 500


def test_a_tar_whose_reader_stops_early_is_closed(tmp_path, whole):
    [shard], _ = look(tmp_path / "a.tar")
    with open_shard(shard) as reader:
        rows = reader.images()
        assert next(rows).row == 0
        assert (reader.rows, reader.contents, reader.places) == (1, None, None)
        rows.close()
