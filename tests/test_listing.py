"""Which files paths, globs and addresses stand for; footers that are there, not there, and not to be had now."""

import os
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from conftest import TINY_FLAGS, TINY_ROWS, encode, random_picture, write_tiny_data

from exemplar_ray.data import footers, listing
from exemplar_ray.data.listing import LeftOut
from exemplar_ray.data.shards import Shard, discover, inspect, open_shard
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.storage import transient
from exemplar_ray.storage.chained import address_of, is_chained, place_of

MACS = b"\0\5\x16\7\0\2\0\0Mac OS X        "


def names(data, left_out=None):
    return [shard.name for shard in discover([str(uri) for uri in data], left_out=left_out)]


@pytest.fixture
def shard(tmp_path):
    """A shard's bytes, from elsewhere."""
    [path] = write_tiny_data(tmp_path / "elsewhere", shards=1)
    return path.read_bytes()


def put(content, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# What is hidden -----------------------------------------------------------------------------


def test_hidden_shards_are_left_out_of_folders_and_globs_and_that_is_said(tmp_path, shard):
    data = tmp_path / ".cache" / "data"
    put(shard, data / "a.parquet", data / "b" / "b.parquet", data / "b" / ".ipynb_checkpoints" / "b-checkpoint.parquet")
    put(MACS, data / "._a.parquet", data / "__MACOSX" / "b" / "._b.parquet", data / "b" / "._b.parquet")
    left_out = LeftOut()
    assert names([data], left_out) == ["a.parquet"]
    assert left_out.lines() == [f"1 hidden files or folders are left out, such as '{data}/._a.parquet'"]
    assert names([data / "**" / "*.parquet"]) == ["a.parquet", "b/b.parquet"]
    assert names([data / "*" / "*.parquet"]) == ["b.parquet"]
    # What is named is asked for.
    assert names([data / "._a.parquet"]) == ["._a.parquet"]
    assert names([data / "._*.parquet"]) == ["._a.parquet"]


def test_hidden_shards_are_left_out_of_object_stores(store, shard):
    for name in ("a.parquet", "._a.parquet", "__MACOSX/c.parquet", "b/b.parquet", "b/.old/b.parquet"):
        store.pipe_file(f"/bucket/data/{name}", shard)
    left_out = LeftOut()
    assert names(["memory://bucket/data"], left_out) == ["a.parquet"]
    assert left_out.hidden == ["/bucket/data/._a.parquet"]
    assert names(["memory://bucket/data/**/*.parquet"]) == ["a.parquet", "b/b.parquet"]


@pytest.fixture
def store():
    """fsspec's object store in memory."""
    import fsspec

    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/bucket", recursive=True)


# Names with characters that globs have --------------------------------------------------------


ODD = ["data [1]", "what?", "50% & co #2", "Büro", "a::b", "star*"]


@pytest.mark.parametrize("folder", ODD)
def test_what_is_there_wins_over_reading_its_name_as_a_glob(tmp_path, shard, folder):
    put(shard, tmp_path / folder / "x [0].parquet", tmp_path / "data 1" / "y.parquet", tmp_path / "whatx" / "y.parquet")
    for uri in (tmp_path / folder, tmp_path / folder / "x [0].parquet", tmp_path / folder / "*.parquet"):
        [found], _ = inspect(discover([str(uri)]))
        assert (found.name, found.rows) == ("x [0].parquet", TINY_ROWS)
        with open_shard(found) as reader:
            assert len(list(reader.images())) == TINY_ROWS


def test_brackets_are_a_glob_where_nothing_has_that_name(tmp_path, shard):
    put(shard, tmp_path / "a1.parquet", tmp_path / "a2.parquet", tmp_path / "ax.parquet")
    assert names([tmp_path / "a[0-9].parquet"]) == ["a1.parquet", "a2.parquet"]
    assert names([tmp_path / "a?.parquet"]) == ["a1.parquet", "a2.parquet", "ax.parquet"]


def test_odd_names_on_an_object_store(store, shard):
    for folder in ("data [1]", "data 1", "50% #2 Büro"):
        store.pipe_file(f"/bucket/{folder}/x.parquet", shard)
    for folder in ("data [1]", "50% #2 Büro"):
        for uri in (f"memory://bucket/{folder}", f"memory://bucket/{folder}/x.parquet", f"memory://bucket/{folder}/*"):
            [found], _ = inspect(discover([uri]))
            assert (found.uri, found.rows) == (f"memory:///bucket/{folder}/x.parquet", TINY_ROWS)
    assert len(names(["memory://bucket/data?1/*.parquet", "memory://bucket/data?[[]1]/*.parquet"])) == 2


def test_names_that_are_no_text_are_refused_by_name(tmp_path, shard):
    (tmp_path / "data").mkdir()
    with open(os.fsencode(tmp_path) + b"/data/caf\xe9.parquet", "wb") as file:
        file.write(shard)
    with pytest.raises(UsageError, match=r"caf\\udce9.parquet' has a name that is not UTF-8; rename it"):
        discover([str(tmp_path / "data")])


# The same file twice --------------------------------------------------------------------------


def test_a_file_counts_once_however_it_is_named(tmp_path, shard, monkeypatch):
    put(shard, tmp_path / "data" / "a.parquet", tmp_path / "data" / "b.parquet")
    (tmp_path / "data" / "again.parquet").symlink_to("a.parquet")
    (tmp_path / "linked").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    everything = ["data", "./data/a.parquet", "data/../data/b.parquet", "linked/*.parquet", f"file://{tmp_path}/data"]
    left_out = LeftOut()
    assert names(everything, left_out) == ["a.parquet", "b.parquet"]
    assert "files are named again, and counted once" in left_out.lines()[0]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path, shard):
    put(shard, tmp_path / "disk2" / "b.parquet", tmp_path / "data" / "a" / "a.parquet")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "disk2")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "itself").symlink_to("itself")
    (tmp_path / "data" / "a" / "gone.parquet").symlink_to("nowhere")
    assert names([tmp_path / "data" / "b"]) == ["b.parquet"]
    left_out = LeftOut()
    assert names([tmp_path / "data" / "*" / "*.parquet"], left_out) == ["a/a.parquet", "b/b.parquet"]
    assert left_out.lost_links == [f"{tmp_path}/data/a/gone.parquet"]
    assert names([tmp_path / "data" / "**" / "*.parquet"]) == ["a/a.parquet", "b/b.parquet"]


# Chains and web servers -----------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, shard):
    path = tmp_path / "archives" / "all.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for name in ("a.parquet", "b/b.parquet", "__MACOSX/._a.parquet"):
            file.writestr(name, shard)
    return path


def test_shards_in_archives_are_read_by_their_whole_address(tmp_path, archive, monkeypatch):
    monkeypatch.chdir(archive.parent)
    for uri in (
        f"zip://*.parquet::{archive}",
        "zip://*.parquet::all.zip",
        "zip://a.parquet::file://all.zip",
        "zip::all.zip",
    ):
        [found], _ = inspect(discover([uri]))
        assert (found.name, found.rows) == ("a.parquet", TINY_ROWS)
        assert found.uri.startswith("zip://a.parquet::")
        assert found.uri.endswith(str(archive))
        # Workers are elsewhere.
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(tmp_path)
            with open_shard(found) as reader:
                assert len(list(reader.images())) == TINY_ROWS
    assert names([f"zip://**/*.parquet::{archive}"]) == ["a.parquet", "b/b.parquet"]
    other = archive.with_name("other.zip")
    other.write_bytes(archive.read_bytes())
    both = [f"zip://*.parquet::{path}" for path in (archive, other)]
    assert names(both) == ["all.zip/a.parquet", "other.zip/a.parquet"]
    cached = f"simplecache::zip://*.parquet::{archive}"
    assert names([cached, both[0]]) == ["a.parquet"]
    [found], _ = inspect(discover([cached]))
    assert (found.uri, found.rows) == (f"simplecache::zip://a.parquet::{archive}", TINY_ROWS)


def test_an_address_of_the_hub_inside_another_is_refused():
    with pytest.raises(UsageError, match="read by its own address, hf://..., which names a commit"):
        discover(["zip://*.parquet::hf://datasets/org/name/all.zip"])


def test_addresses_and_places():
    assert address_of("simplecache::s3://bucket/*", "bucket/a") == "simplecache::s3://bucket/a"
    assert address_of("tar://x*::https://host/all.tar", "x/a") == "tar://x/a::https://host/all.tar"
    assert place_of("tar://x/a::https://host/all.tar") == "https://host/all.tar/x/a"
    assert not is_chained("s3://bucket/a")


class InPieces(SimpleHTTPRequestHandler):
    """Answers range requests, which the standard library's own server does not."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        path = self.translate_path(self.path)
        if not asked or not os.path.isfile(path):
            super().do_GET()
            return
        with open(path, "rb") as file:
            content = file.read()
        start, _, end = asked.removeprefix("bytes=").partition("-")
        piece = content[int(start) : int(end) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)


class Whole(SimpleHTTPRequestHandler):
    """The standard library's own."""

    def log_message(self, *_):
        pass


@contextmanager
def web_server(folder, handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_web_server_gives_pieces_or_is_refused_before_the_scan(tmp_path, size):
    rows = 10 if size == "small" else 40
    behind = bytes(0 if size == "small" else 3000)
    images = [LabelledImage(encode(random_picture(i)) + behind, f"{i}.png", 0) for i in range(rows)]
    [path], _ = write_images(images, str(tmp_path / "data"), None, rows)
    assert (path.stat().st_size > 1 << 16) == (size == "large")
    with web_server(tmp_path / "data", InPieces) as url:
        [found], _ = inspect(discover([f"{url}/{path.name}"]))
        assert found.rows == rows
        with open_shard(found) as reader:
            assert len(list(reader.images())) == rows
        assert names([url + "/"]) == [path.name]
    with web_server(tmp_path / "data", Whole) as url:
        with pytest.raises(UsageError, match="gives whole files only.*copy the files to a disk or an object store"):
            inspect(discover([f"{url}/{path.name}"]))
        with pytest.raises(UsageError, match="no parquet shard, tar or image matches"):
            discover([f"{url}/nothing.parquet"])


# Footers --------------------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(transient.time, "sleep", lambda seconds: None)


def failing(monkeypatch, where, name, error, times):
    """Let a function raise an error so many times."""
    function, left = getattr(where, name), [times]

    def sometimes(*arguments):
        if left[0]:
            left[0] -= 1
            raise error
        return function(*arguments)

    monkeypatch.setattr(where, name, sometimes)


def of_botocore():
    from botocore.exceptions import EndpointConnectionError

    return EndpointConnectionError(endpoint_url="https://s3")


ERRORS = [TimeoutError("timed out"), ConnectionResetError("reset"), OSError(5, "Input/output error"), of_botocore()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("where", "name"), [(footers, "open_file"), (listing, "_listed")])
def test_what_cannot_be_looked_at_is_tried_again_and_then_refused(
    tmp_path, shard, monkeypatch, no_pauses, where, name, error
):
    put(shard, tmp_path / "a.parquet")
    [before], _ = inspect(discover([str(tmp_path)]))
    failing(monkeypatch, where, name, error, transient.ATTEMPTS - 1)
    [after], _ = inspect(discover([str(tmp_path)]))
    assert after == before
    failing(monkeypatch, where, name, error, transient.ATTEMPTS)
    with pytest.raises(UsageError, match="cannot be read now|cannot list") as refused:
        inspect(discover([str(tmp_path)]))
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("no_pauses")
def test_a_footer_that_comes_in_part_is_no_other_file(tmp_path, shard, monkeypatch):
    put(shard, tmp_path / "a.parquet")
    read, short = footers.read_range, [2]

    class Short:
        def __init__(self, file):
            self.file = file

        def seek(self, place):
            self.file.seek(place)

        def read(self, count):
            return self.file.read(count)[:-7]

    def sometimes(file, start, end):
        short[0] -= 1
        return read(Short(file) if short[0] >= 0 else file, start, end)

    monkeypatch.setattr(footers, "read_range", sometimes)
    [found], _ = inspect(discover([str(tmp_path)]))
    assert found.rows == TINY_ROWS


def test_a_rerun_during_an_outage_changes_nothing_and_blames_nobody(
    tmp_path, monkeypatch, no_pauses, tiny_data, cli, ray_cluster
):
    """A time-out while the footer of a scanned shard is read."""
    arguments = ["run", "--data", tiny_data, "--out", tmp_path / "run", *TINY_FLAGS]
    assert cli(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with monkeypatch.context() as outage:
        failing(outage, footers, "open_file", TimeoutError("timed out"), 1000)
        status, text = cli(*arguments)
    assert (status, text.count("\n")) == (2, 1), text
    assert "cannot be read now (TimeoutError: timed out); nothing was changed, run the same command again" in text
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert "nothing to do" in cli(*arguments)[1]


def test_what_is_gone_or_closed_is_said_at_planning(tmp_path, shard, monkeypatch):
    put(shard, tmp_path / "a.parquet")
    found = discover([str(tmp_path)])
    for error, says in ((PermissionError("no"), "access denied"), (FileNotFoundError("no"), "is not there any more")):
        failing(monkeypatch, footers, "open_file", error, 1)
        with pytest.raises(UsageError, match=says):
            inspect(found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 451187\n" % 7, "Git LFS.*`git lfs pull`"),
        (b"/annex/objects/SHA256E-s451187--%064d.parquet\n" % 7, "git-annex.*`git annex get .`"),
    ],
)
def test_pointers_are_named_for_what_they_are(tmp_path, shard, content, says):
    put(shard, tmp_path / "a.parquet")
    put(content, tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=f"b.parquet' is a {says}"):
        inspect(discover([str(tmp_path)]))


def test_of_several_pointers_each_is_named(tmp_path):
    for name in "abc":
        put(b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\n" % 7, tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match=r"3 files are Git LFS pointers.*/a.parquet', .*/b.parquet', .*/c.parquet'; "):
        inspect(discover([str(tmp_path)]))


def test_how_a_shard_changed_is_said_as_it_is(tmp_path, shard):
    put(shard, tmp_path / "a.parquet")
    [now], _ = inspect(discover([str(tmp_path)]))
    then = now.to_json()
    assert now.change_since(then) is None
    assert now.change_since({**then, "size": 5}) == f"5 bytes then, {len(shard)} now"
    other = now.change_since({**then, "footer": "0123456789abcdef"})
    assert other == f"{len(shard)} bytes as then, but another footer: SHA-256 0123456789ab then, {now.footer[:12]} now"
    # Not to have been able to look is no difference.
    assert now.change_since({**then, "footer": None, "rows": None}) is None
    assert Shard("a", "a", len(shard)).change_since(then) == f"{len(shard)} bytes as then, but no longer a parquet file"


# Making shards --------------------------------------------------------------------------------


def test_an_image_folder_without_what_is_hidden(tmp_path, cli):
    picture = encode(random_picture(1))
    for place in ("ant/a.png", "bee/b.png", "bee/.b.png", ".ipynb_checkpoints/a-checkpoint.png"):
        put(picture, tmp_path / "photos" / place)
    put(MACS, tmp_path / "photos" / "__MACOSX" / "ant" / "._a.png", tmp_path / "photos" / ".DS_Store")
    put(picture, tmp_path / "disk2" / "c.png")
    (tmp_path / "photos" / "cow").symlink_to(tmp_path / "disk2")
    (tmp_path / "photos" / "cow" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "ant" / "gone.png").symlink_to("nowhere.png")
    status, text = cli("shard", tmp_path / "photos", tmp_path / "data")
    assert status == 0, text
    assert "3 hidden files or folders are left out" in text
    assert "1 links that lead nowhere are left out" in text
    [found], classes = inspect(discover([str(tmp_path / "data")]))
    with open_shard(found) as reader:
        rows = [(row.path, row.label) for row in reader.select(range(found.rows))]
    assert (rows, classes) == ([("ant/a.png", 0), ("bee/b.png", 1), ("cow/c.png", 2)], ["ant", "bee", "cow"])


def test_an_image_whose_name_is_no_text_is_named_and_nothing_is_left_behind(tmp_path, cli):
    picture = encode(random_picture(1))
    put(picture, tmp_path / "photos" / "tea" / "a.png")
    os.mkdir(os.fsencode(tmp_path) + b"/photos/caf\xe9")
    with open(os.fsencode(tmp_path) + b"/photos/caf\xe9/b.png", "wb") as file:
        file.write(picture)
    status, text = cli("shard", tmp_path / "photos", tmp_path / "data")
    assert (status, text.count("\n"), r"caf\udce9/b.png' has a name that is not UTF-8" in text) == (2, 1, True), text
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), pa.ArrowInvalid("no")])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_can_be_written_to_again_whatever_went_wrong(tmp_path, error, there):
    def images():
        yield from [LabelledImage(b"x", "p", 0)] * 7
        raise error

    target = tmp_path / "data"
    if there:
        target.mkdir()
        # What a command that was killed has left.
        put(b"torn", target / ".00000.parquet.tmp")
    with pytest.raises(type(error)):
        write_images(images(), str(target), None, 3)
    assert list(tmp_path.rglob("*")) == ([target] if there else [])
    assert len(write_images([LabelledImage(b"x", "p", 0)] * 7, str(target), None, 3)[0]) == 3
    assert len(list(target.iterdir())) == 3


def data_set(folder, features=None, **columns):
    """A local clone of a Hub data set, which loads through the same call as its name does."""
    folder.mkdir()
    from test_columns import write

    write(folder / "train.parquet", features, **columns)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n")
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "written", "classes"),
    [
        (pa.array([0, -1, None]), [0, None, None], None),
        (pa.array([1.0, None, 2.0]), [1, None, 2], None),
        (pa.array(["cow", "ant", None]), [1, 0, None], ["ant", "cow"]),
        (pa.array([True, False, None]), [1, 0, None], None),
    ],
)
def test_a_hub_data_sets_labels_are_those_of_a_shard(tmp_path, labels, written, classes):
    from test_columns import images

    from exemplar_ray.data import write_shards as sharding

    source = data_set(tmp_path / "clone", img=images(), category=labels)
    notes = []
    chosen = sharding.Chosen(None, "category")
    rows, found = sharding._from_hub(source, "train", chosen, notes)
    assert ([row.label for row in rows], found) == (written, classes)
    assert "images are read from column 'img'" in notes
    assert notes[-1].startswith("labels are read from column 'category'")


@pytest.mark.parametrize(
    ("labels", "says"),
    [(pa.array([0.0, 0.5, 1.0]), "label 0.5 is no whole number"), (pa.array([[1], [2], []]), "column 'label' is list")],
)
def test_a_hub_data_sets_odd_labels_are_refused_and_nothing_is_left_behind(tmp_path, monkeypatch, labels, says):
    from test_columns import images

    from exemplar_ray.data import write_shards as sharding

    source = data_set(tmp_path / "clone", image=images(), label=labels)
    # Here a folder is a data set's clone.
    monkeypatch.setattr(sharding, "_from_folder", lambda source, _: sharding._from_hub(str(source), "train"))
    with pytest.raises(UsageError, match=f"{says}.*--label-column"):
        sharding.write_shards(source, str(tmp_path / "data"), "train", 2)
    assert not (tmp_path / "data").exists()
    found, _ = sharding._from_hub(source, "train", sharding.Chosen(None, "none"))
    assert [row.label for row in found] == [None] * 3
