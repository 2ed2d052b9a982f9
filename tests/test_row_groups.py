"""Reading a shard in few requests, of few rows little, and knowing what its bytes were."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import xxhash
from conftest import encode, random_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_store import BUCKET, environment, file_system, object_store
from stand_in import serving
from test_listing import InPieces

from exemplar_ray.data import pages, row_groups
from exemplar_ray.data.compact_thrift import read_struct
from exemplar_ray.data.formats.parquet import ParquetReader
from exemplar_ray.data.row_groups import RowGroupFile
from exemplar_ray.data.shards import discover, imagenet_schema, open_shard
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import ShardError

ROWS, GROUPS = 1000, 10


def images_of(count, size=3000, seed=0):
    """Return so many different contents of about so many bytes, some of them empty or missing."""
    generator = np.random.default_rng(seed)
    contents = [generator.bytes(int(size * (0.5 + generator.random()))) for _ in range(count)]
    return [None if i % 97 == 5 else b"" if i % 89 == 7 else content for i, content in enumerate(contents)]


def write(path, images, rows_a_group, **options):
    """Write images in the ImageNet schema, with small pages and a page index unless told otherwise."""
    table = pa.table(
        {
            "image": [
                None if i % 101 == 3 else {"bytes": image, "path": f"{i}.JPEG"} for i, image in enumerate(images)
            ],
            "label": [i % 1000 for i in range(len(images))],
        },
        schema=imagenet_schema(None),
    )
    known = {"data_page_size": 8192, "write_batch_size": 1, "write_page_index": True, "use_dictionary": False}
    pq.write_table(table, path, row_group_size=rows_a_group, **{**known, **options})
    return table


class Counting(InPieces):
    """Counts what is asked for."""

    def send_header(self, name, value):
        """Note how many bytes an answer has."""
        if name == "Content-Length":
            self.server.asked.append((self.command, int(value)))
        super().send_header(name, value)


@contextmanager
def counting_server(folder):
    """Serve a folder over HTTP; yield its address and a list of (method, bytes) that grows with each request."""

    def handler(*arguments):
        return Counting(*arguments, directory=str(folder))

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}", server.asked


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "snappy"},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": True},
        {"compression": "gzip", "write_page_checksum": True},
        {"write_page_index": False},
    ],
)
def test_few_rows_are_those_of_the_whole_file(tmp_path, options):
    images = images_of(300)
    table = write(tmp_path / "a.parquet", images, 120, **options)
    rows = table.to_pylist()
    [shard] = discover([str(tmp_path)])
    for wanted in ([0], [299], [119, 120], [7, 8, 9, 150, 298], list(range(0, 300, 11)), list(range(300)), [5, 300]):
        with open_shard(shard) as reader:
            found = list(reader.select(wanted))
        assert [image.row for image in found] == [row for row in wanted if row < 300]
        for image in found:
            inside = rows[image.row]["image"] or {"bytes": None, "path": None}
            assert (image.data, image.path) == (inside["bytes"], inside["path"])
            assert image.label == rows[image.row]["label"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 5000)), min_size=1, max_size=60),
    chosen=st.sets(st.integers(0, 59), min_size=1),
    page=st.integers(1, 6000),
    group=st.integers(1, 60),
    nullable=st.booleans(),
)
def test_whatever_the_pages_are(tmp_path, sizes, chosen, page, group, nullable):
    contents = [
        None if size is None and nullable else np.random.default_rng(i).bytes(size or 0) for i, size in enumerate(sizes)
    ]
    schema = pa.schema([pa.field("image", pa.binary(), nullable=nullable)])
    options = {"data_page_size": page, "write_batch_size": 1, "write_page_index": True, "use_dictionary": False}
    pq.write_table(pa.table({"image": contents}, schema), tmp_path / "a.parquet", row_group_size=group, **options)
    [shard] = discover([str(tmp_path / "a.parquet")])
    small, pages._SMALL_PAGE, row_groups._SMALL = (pages._SMALL_PAGE, row_groups._SMALL), 40, 40
    try:
        with open_shard(shard) as reader:
            found = {image.row: image.data for image in reader.select(chosen)}
    finally:
        pages._SMALL_PAGE, row_groups._SMALL = small
    assert found == {row: contents[row] for row in sorted(chosen) if row < len(contents)}


def test_a_thousand_rows_in_ten_row_groups_are_eleven_requests_and_four_of_them_cost_little(tmp_path):
    write(tmp_path / "indexed.parquet", images_of(ROWS), ROWS // GROUPS)
    write(tmp_path / "plain.parquet", images_of(ROWS), ROWS // GROUPS, write_page_index=False)
    cost = {}
    with counting_server(tmp_path) as (url, asked):
        for name in ("indexed", "plain"):
            [shard] = discover([f"{url}/{name}.parquet"])
            asked.clear()
            with open_shard(shard) as reader:
                assert len(list(reader.images())) == ROWS
            assert len(asked) == GROUPS + 1
            asked.clear()
            with open_shard(shard) as reader:
                assert [image.row for image in reader.select([3, 250, 251, 777, 998])] == [3, 250, 251, 777, 998]
            cost[name] = sum(size for _, size in asked) / shard.size, len(asked)
    assert cost["indexed"][0] < 0.1
    assert cost["indexed"][1] <= 1 + 3 * 4
    # Without an index whole row groups are read: 4 of 10, and the footer.
    assert 0.4 < cost["plain"][0] < 0.45
    assert cost["plain"][1] == 1 + 4


def test_requests_at_an_object_store(tmp_path, monkeypatch, request):
    write(tmp_path / "a.parquet", images_of(ROWS), ROWS // GROUPS)
    with object_store() as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        # Another test's server may be remembered, and nobody must remember this one.
        s3fs.S3FileSystem.clear_instance_cache()
        request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
        file_system(url).put_file(str(tmp_path / "a.parquet"), f"{BUCKET}/a.parquet")
        [shard] = discover([f"s3://{BUCKET}/a.parquet"])

        calls = []
        original = s3fs.S3FileSystem._call_s3

        async def counted(self, method, *arguments, **options):
            calls.append(method)
            return await original(self, method, *arguments, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
        with open_shard(shard) as reader:
            contents = reader.contents_now()
        calls.clear()
        with open_shard(shard) as reader:
            assert len(list(reader.images())) == ROWS
        # The first asks what the file is now: no piece of another one comes.
        assert calls == ["head_object"] + ["get_object"] * (GROUPS + 1)

        # With copies on a disk of its own a machine asks for a file once.
        monkeypatch.setenv("EXEMPLAR_RAY_SHARD_CACHE", str(tmp_path / "copies"))
        calls.clear()

        def read(_):
            with open_shard(shard) as reader:
                assert len(list(reader.images())) == ROWS
                assert [image.row for image in reader.select([5])] == [5]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))
        assert calls.count("get_object") == 1
        [copy] = (tmp_path / "copies").iterdir()
        assert copy.read_bytes() == (tmp_path / "a.parquet").read_bytes()

        # Another file under the same name is another copy.
        other = bytearray(copy.read_bytes())
        other[5000:5003] = b"abc"
        file_system(url).pipe_file(f"{BUCKET}/a.parquet", bytes(other))
        [changed] = discover([f"s3://{BUCKET}/a.parquet"])
        with open_shard(changed) as reader:
            assert reader.contents_now() != contents
    assert len(list((tmp_path / "copies").iterdir())) == 2


@pytest.mark.parametrize("at_once", [None, 1000])
def test_contents_are_what_the_bytes_were(tmp_path, monkeypatch, at_once):
    """Whether a row group waits in memory as a whole or is read piece by piece."""
    write(tmp_path / "a.parquet", images_of(200), 50)
    if at_once is not None:
        monkeypatch.setattr(row_groups, "_MOST_AT_ONCE", at_once)
        monkeypatch.setattr(row_groups, "_NEAR", 2000)
        monkeypatch.setattr(row_groups, "_BYTES_PER_READ", 4096)
    [shard] = discover([str(tmp_path)])
    with open_shard(shard) as reader:
        assert reader.contents is None
        assert len(list(reader.images())) == 200
        noted = reader.contents
    with open_shard(shard) as reader:
        assert reader.contents_now() == noted
    content = (tmp_path / "a.parquet").read_bytes()
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    expected = []
    for group in range(4):
        places = [pages.chunk_of(metadata.row_group(group).column(column)) for column in (0, 2)]
        digests = "".join(xxhash.xxh3_128_hexdigest(content[start:end]) for start, end in places)
        expected.append(xxhash.xxh3_128_hexdigest(digests.encode()))
    assert noted == expected


def test_one_other_byte_of_an_image_or_a_label_is_other_contents(tmp_path):
    write(tmp_path / "a.parquet", images_of(200), 50, compression="none")
    [shard] = discover([str(tmp_path)])

    def contents():
        with open_shard(shard) as reader:
            return reader.contents_now()

    before, whole = contents(), (tmp_path / "a.parquet").read_bytes()
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    for group, column in ((2, 0), (3, 2)):
        start, end = pages.chunk_of(metadata.row_group(group).column(column))
        damaged = bytearray(whole)
        damaged[(start + end) // 2] ^= 1
        (tmp_path / "a.parquet").write_bytes(damaged)
        assert [one != other for one, other in zip(before, contents(), strict=True)] == [g == group for g in range(4)]


def test_a_page_without_its_checksum_is_damage_and_says_so(tmp_path):
    write(tmp_path / "a.parquet", images_of(100), 50, write_page_checksum=True, compression="none")
    [shard] = discover([str(tmp_path)])
    start, _ = pages.chunk_of(pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0))
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[start + 5000 : start + 5200] = bytes(200)
    (tmp_path / "a.parquet").write_bytes(damaged)
    for read in (ParquetReader.images, lambda reader: reader.select([51])):
        with (
            open_shard(shard) as reader,
            pytest.raises(ShardError, match="a.parquet is damaged: a page of row group 1"),
        ):
            list(read(reader))


def test_the_next_row_group_is_fetched_while_one_is_worked_on(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", images_of(200), 50)
    loaded = []
    original = RowGroupFile._load
    monkeypatch.setattr(
        RowGroupFile, "_load", lambda self, g, columns: (loaded.append(g), original(self, g, columns))[1]
    )
    [shard] = discover([str(tmp_path)])
    with open_shard(shard) as reader:
        images = reader.images()
        next(images)
        images.close()
    # One ahead, and no more.
    assert loaded == [0, 1]


def test_a_broken_page_index_is_damage(tmp_path):
    write(tmp_path / "a.parquet", images_of(100), 100)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    [[place, _, _]] = pages.index_places(bytes(content[-8 - length : -8]))
    content[place[0] : place[1]] = bytes(place[1] - place[0])
    (tmp_path / "a.parquet").write_bytes(content)
    [shard] = discover([str(tmp_path)])
    with open_shard(shard) as reader, pytest.raises(ShardError, match="a.parquet is damaged: a page index"):
        list(reader.select([50]))


def test_structures_that_end_early_are_refused():
    with pytest.raises(ValueError, match="ends early"):
        read_struct(b"\x15")
    with pytest.raises(ValueError, match="ends early"):
        read_struct(b"\x18\x05ab")


def test_shards_that_this_project_writes_have_an_index_of_small_pages(tmp_path):
    images = [LabelledImage(encode(random_picture(i, 400, 400)), f"{i}.png", 0) for i in range(200)]
    [path], _ = write_images(images, str(tmp_path / "d"), None, 1000)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    assert chunk.has_offset_index
    with counting_server(path.parent) as (url, asked):
        [shard] = discover([f"{url}/{path.name}"])
        asked.clear()
        with open_shard(shard) as reader:
            assert [image.data for image in reader.select([17])] == [images[17].data]
    assert sum(size for _, size in asked) < path.stat().st_size / 20
