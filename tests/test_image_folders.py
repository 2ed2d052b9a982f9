"""Images by themselves: which files a folder stands for, how they become shards, what is read of them."""

import os
import shutil
import zipfile

import fsspec
import pytest
from conftest import encode, random_picture, write_tiny_data
from images_as_people_have_them import put, samples_of, write_tar
from test_listing import MACS, InPieces, web_server
from test_row_groups import counting_server

from exemplar_ray.data import listed
from exemplar_ray.data.columns import Chosen
from exemplar_ray.data.footers import PointerError
from exemplar_ray.data.formats import images as images_format
from exemplar_ray.data.formats.registry import describe, format_named
from exemplar_ray.data.listed import LeftOut
from exemplar_ray.data.shard import identity_of_columns
from exemplar_ray.data.shards import Shard, discover, inspect, open_shard
from exemplar_ray.data.write_shards import write_shards
from exemplar_ray.errors import ShardError, UsageError

PICTURE = encode(random_picture(1))


def photos(folder, *names):
    """A folder of images of these names; each is another one."""
    for number, name in enumerate(names):
        put(encode(random_picture(number)), folder / name)
    return folder


def look(*data, label=None, left_out=None):
    return inspect(discover([str(uri) for uri in data], left_out=left_out), Chosen(None, label))


def rows_of(shards):
    """[(shard's name, row, path, label)] of all rows, with what `select` says held against `images`."""
    found = []
    for shard in shards:
        with open_shard(shard) as reader:
            rows = list(reader.images())
            assert list(reader.select(range(len(rows) + 1))) == rows
            assert reader.rows == shard.rows == len(rows)
            found += [(shard.name, image.row, image.path, image.label) for image in rows]
    return found


def test_a_folder_is_its_images_by_name_and_the_folders_in_it_are_classes(tmp_path):
    data = photos(tmp_path / "photos", "cow/b.JPG", "ant/winged/2.png", "ant-like/1.png", "ant/1.png", "loose.webp")
    (data / "notes.txt").write_text("no image")
    (data / "ant" / "paper.pdf").write_bytes(b"%PDF")
    shards, names = look(data)
    assert names == ["ant", "ant-like", "cow"]
    # Folder by folder: what is in `ant` before what is in `ant-like`.
    paths = ["ant/1.png", "ant/winged/2.png", "ant-like/1.png", "cow/b.JPG", "loose.webp"]
    labels = [0, 0, 1, 2, None]
    assert rows_of(shards) == [
        ("images-00000-of-00001", row, path, label) for row, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    assert describe(shards) == ["labels are the names of 3 folders, such as 'ant'"]
    assert identity_of_columns(shards).keys() == {"label_texts"}
    # As run.json has them.
    assert [Shard.from_json(shard.to_json(), names) for shard in shards] == shards
    # And as the shards that are written of it.
    written, _ = inspect(discover([str(path) for path in write_shards(str(data), str(tmp_path / "d"), "train", 9)[0]]))
    with open_shard(written[0]) as reader:
        assert [(image.path, image.label) for image in reader.select(range(9))] == list(zip(paths, labels, strict=True))


@pytest.mark.parametrize(("files", "runs"), [(1, [1]), (100, [100]), (101, [100, 1]), (1700, [200] * 8 + [100])])
def test_shards_are_runs_of_files(tmp_path, files, runs):
    (tmp_path / "photos").mkdir()
    for i in range(files):
        (tmp_path / "photos" / f"{i:05d}.png").write_bytes(b"x" * (i % 7))
    shards = discover([str(tmp_path / "photos")])
    assert [shard.rows for shard in shards] == runs
    assert [shard.name for shard in shards] == [f"images-{i:05d}-of-{len(runs):05d}" for i in range(len(runs))]
    assert sum(shard.size for shard in shards) == sum(i % 7 for i in range(files))


def test_the_longest_shards_are_of_a_thousand_files():
    assert [images_format.files_in_a_run(count) for count in (3_200, 3_201, 8_001, 1_300_000)] == [200, 500, 1000, 1000]


def test_a_shard_is_the_same_wherever_the_folder_is_and_other_files_are_another(tmp_path):
    data = photos(tmp_path / "photos", "a/1.png", "a/2.png", "b/3.png")
    [shard], _ = look(data)
    shutil.copytree(data, tmp_path / "elsewhere" / "pictures")
    [other], _ = look(tmp_path / "elsewhere" / "pictures")
    assert other.name == shard.name
    assert (other.size, other.footer, other.columns) == (shard.size, shard.footer, shard.columns)
    recorded = shard.to_json()
    assert other.change_since(recorded) is None
    assert not other.may_differ(recorded)
    os.utime(tmp_path / "elsewhere" / "pictures" / "b" / "3.png", (1, 1))
    assert look(tmp_path / "elsewhere" / "pictures")[0][0].may_differ(recorded)
    (data / "a" / "1.png").rename(data / "a" / "0.png")
    assert "bytes as then, but another list of files: SHA-256" in look(data)[0][0].change_since(recorded)
    (data / "a" / "0.png").unlink()
    assert look(data)[0][0].change_since(recorded) == "3 images then, 2 now"


def test_contents_are_told_in_hundreds(tmp_path):
    for i in range(250):
        put(b"x" * 50, tmp_path / "photos" / "a" / f"{i:03d}.png")
    shards, _ = look(tmp_path / "photos")
    contents = {}
    for shard in shards:
        with open_shard(shard) as reader:
            assert reader.contents is None
            contents[shard.name] = reader.contents_now()
    assert [len(digests) for digests in contents.values()] == [1, 1, 1]
    (tmp_path / "photos" / "a" / "150.png").write_bytes(b"y" * 50)
    for shard in shards:
        with open_shard(shard) as reader:
            assert (reader.contents_now() == contents[shard.name]) == ("00001" not in shard.name)
    assert format_named("images").groups([0, 2]) == "rows 0-99, 200-299"


# Which files ------------------------------------------------------------------------------


def test_hidden_images_and_lost_links_are_left_out_and_links_are_images(tmp_path):
    data = photos(tmp_path / "photos", "ant/a.png", "bee/b.png", "bee/.b.png", ".thumbs/a.png")
    put(MACS, data / "__MACOSX" / "ant" / "._a.png")
    put(b"", data / ".DS_Store")
    # The same file in two classes is two images: so are data sets made whose files lie elsewhere.
    (data / "cow").mkdir()
    (data / "cow" / "a.png").symlink_to(data / "ant" / "a.png")
    (data / "cow" / "gone.png").symlink_to("nowhere.png")
    (data / "cow" / "up").symlink_to(data)
    left_out = LeftOut()
    shards, _ = look(data, left_out=left_out)
    assert [row[2:] for row in rows_of(shards)] == [("ant/a.png", 0), ("bee/b.png", 1), ("cow/a.png", 2)]
    assert len(left_out.hidden) == 3
    assert left_out.lost_links == [f"{data}/cow/gone.png"]


def test_globs_lists_and_single_files(tmp_path, monkeypatch):
    data = photos(tmp_path / "photos", "ant/1.png", "ant/2.jpg", "bee/3.png")
    (data / "ant" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)

    def found(*uris):
        shards, _ = look(*uris)
        return [row[2:] for row in rows_of(shards)], {shard.uri for shard in shards}

    everything = [("ant/1.png", 0), ("ant/2.jpg", 0), ("bee/3.png", 1)]
    assert found("photos") == (everything, {str(data)})
    # What a glob looks into is the folder; what it is called again, when a run is given as a command.
    assert found("photos/**/*.png") == ([everything[0], everything[2]], {f"{data}/**/*.png"})
    assert found("photos/*/*.png", "photos/*/*.jpg") == (everything, {str(data)})
    # As a shell writes out a glob.
    assert found("photos/ant/1.png", "photos/ant/2.jpg", "photos/bee/3.png") == (everything, {str(data)})
    assert found("photos/ant/1.png", "photos/ant/1.png") == ([("1.png", None)], {f"{data}/ant"})
    # Folders by themselves have no classes in them; and an image counts once.
    left_out = LeftOut()
    shards, names = look("photos/ant", "photos/bee", left_out=left_out)
    assert [row[:3] for row in rows_of(shards)] == [
        ("ant/images-00000-of-00001", 0, "1.png"),
        ("ant/images-00000-of-00001", 1, "2.jpg"),
        ("bee/images-00000-of-00001", 0, "3.png"),
    ]
    assert (names, left_out.lines()) == (None, [])
    assert describe(shards) == ["no labels: the images are in no folders that could be classes"]
    (tmp_path / "linked").symlink_to("photos")
    shards, _ = look("photos", "linked", "photos/bee", left_out=left_out)
    assert len(rows_of(shards)) == 3
    assert left_out.lines() == [f"4 files are named again, and counted once, such as '{data}/ant/1.png'"]
    left_out = LeftOut()
    assert len(rows_of(look("photos/*/*", left_out=left_out)[0])) == 3
    assert left_out.lines() == [f"1 other files are left out, such as '{data}/ant/notes.txt'"]


def test_what_may_be_read_in_several_ways_is_refused_with_the_globs_that_choose(tmp_path):
    data = photos(tmp_path / "d", "figure.png")
    write_tiny_data(tmp_path / "parquet", shards=1)
    [shard] = (tmp_path / "parquet").iterdir()
    shutil.copy(shard, data / "a.parquet")
    with pytest.raises(
        UsageError, match=r"d' stands for parquet shards and images; .*/d/\*.parquet' or '.*/d/\*\*/\*.j"
    ):
        look(data)
    with pytest.raises(UsageError, match=r"d/\*' stands for parquet shards and images"):
        look(data / "*")
    assert [one.name for one in look(data / "*.parquet")[0]] == ["a.parquet"]
    # What is beside shards in folders of its own was never data.
    (data / "report").mkdir()
    (data / "figure.png").rename(data / "report" / "figure.png")
    assert [one.name for one in look(data)[0]] == ["a.parquet"]
    # An archive beside what came out of it.
    (data / "a.parquet").unlink()
    write_tar(data / "photos.tar", samples_of([(PICTURE, 0)]))
    (data / "photos" / "ant").mkdir(parents=True)
    (data / "report" / "figure.png").rename(data / "photos" / "ant" / "1.png")
    with pytest.raises(UsageError, match="stands for tars and images"):
        look(data)
    assert [one.name for one in look(data / "*.tar")[0]] == ["photos.tar"]
    assert len(rows_of(look(data / "photos")[0])) == 1


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UsageError, match="no parquet shard, tar or image matches"):
        look(tmp_path / "empty")


def test_labels_are_the_folders_names_or_none(tmp_path):
    data = photos(tmp_path / "photos", "ant/1.png", "bee/2.png")
    shards, names = look(data, label="none")
    assert ([row[3] for row in rows_of(shards)], names) == ([None, None], None)
    assert describe(shards) == ["no labels are read (--label-column none)"]
    assert identity_of_columns(shards) == {"label_column": "none"}
    with pytest.raises(UsageError, match="no shard has a column 'kind'"):
        look(data, label="kind")
    with pytest.raises(UsageError, match=r"images by themselves, which have no columns \(--image-column\)"):
        inspect(discover([str(data)]), Chosen("jpg"))
    # Texts in one form are texts in another.
    write_tar(tmp_path / "more.tar", samples_of([(PICTURE, "bee"), (PICTURE, "cow")]))
    shards, names = look(data, tmp_path / "more.tar")
    assert names == ["ant", "bee", "cow"]
    with open_shard(next(shard for shard in shards if shard.format == "tar")) as reader:
        assert [image.label for image in reader.images()] == [1, 2]
    write_tar(tmp_path / "more.tar", samples_of([(PICTURE, 0), (PICTURE, 1)]))
    with pytest.raises(
        UsageError, match="are string in '.*photos' and int64 in '.*more.tar'|are int64 in .* and string"
    ):
        look(data, tmp_path / "more.tar")


def test_images_that_are_pointers_are_named_for_what_they_are(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 451187\n" % 7
    put(pointer, tmp_path / "photos" / "ant" / "1.png")
    with pytest.raises(PointerError, match="photos/ant/1.png' is a Git LFS pointer, not the file: run `git lfs pull`"):
        look(tmp_path / "photos")


def test_a_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with open(bytes(tmp_path) + b"/photos/caf\xe9.png", "wb") as file:
        file.write(PICTURE)
    with pytest.raises(UsageError, match=r"image '.*caf\\udce9.png' has a name that is not UTF-8; rename it"):
        look(tmp_path / "photos")


def test_what_is_published_of_it_does_not_say_which_files(tmp_path):
    [shard], _ = look(photos(tmp_path / "photos", "ant/1.png"))
    values = shard.to_json()
    del values["files"]
    with pytest.raises(ShardError, match="which files it is made of is not known"):
        open_shard(Shard.from_json(values, ["ant"]))
    with pytest.raises(UsageError, match="of the format 'lmdb', which this version of exemplar_ray cannot read"):
        open_shard(Shard.from_json({**values, "format": "lmdb"}, ["ant"]))


def test_endings_are_of_what_can_be_decoded():
    assert all(map(listed.is_image, ("a.JPEG", "b/c.png", "d.webp", "e.tif", "f.bmp", "g.gif", "h.ppm")))
    assert not any(map(listed.is_image, ("a.pdf", "b.h5", "c.eps", "d.mpg", "e.txt", "f", "g.parquet", "png")))


# Other file systems -----------------------------------------------------------------------


@pytest.fixture
def store():
    """fsspec's object store in memory."""
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/bucket", recursive=True)


def test_folders_and_globs_of_object_stores_are_those_of_a_disk(tmp_path, store):
    data = photos(tmp_path / "photos", "ant/1.png", "ant-like/[2].png", "bee/3.png", "bee/.hidden.png", "loose.png")
    for path in data.rglob("*.png"):
        store.pipe_file(f"/bucket/photos/{path.relative_to(data)}", path.read_bytes())
    store.pipe_file("/bucket/photos/notes.txt", b"no image")
    local, names = look(data)
    left_out = LeftOut()
    remote, found = look("memory://bucket/photos", left_out=left_out)
    assert (rows_of(remote), found) == (rows_of(local), names)
    assert [(one.name, one.size, one.footer) for one in remote] == [(one.name, one.size, one.footer) for one in local]
    assert (left_out.hidden, {shard.uri for shard in remote}) == (
        ["/bucket/photos/bee/.hidden.png"],
        {"memory:///bucket/photos"},
    )
    remote, _ = look("memory://bucket/photos/*/*.png")
    assert [row[2:] for row in rows_of(remote)] == [("ant/1.png", 0), ("ant-like/[2].png", 1), ("bee/3.png", 2)]
    assert remote[0].uri == "memory://bucket/photos/*/*.png"
    remote, _ = look("memory://bucket/photos/ant/1.png", "memory://bucket/photos/bee/3.png")
    assert [row[2:] for row in rows_of(remote)] == [("ant/1.png", 0), ("bee/3.png", 1)]
    store.pipe_file("/bucket/photos/a.tar", b"")
    with pytest.raises(UsageError, match=r"'memory://bucket/photos' stands for tars and images"):
        look("memory://bucket/photos")


def test_images_in_an_archive(tmp_path, monkeypatch):
    data = photos(tmp_path / "photos", "ant/1.png", "bee/2.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in data.rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    monkeypatch.chdir(tmp_path)
    for uri in ("zip://photos::all.zip", "zip://photos/**::all.zip", "zip://photos/*/*.png::file://all.zip"):
        shards, _ = look(uri)
        assert shards[0].uri.endswith(str(tmp_path / "all.zip"))
        # Workers are elsewhere.
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            assert [row[2:] for row in rows_of(shards)] == [("ant/1.png", 0), ("bee/2.png", 1)]


def test_a_web_page_of_images_is_a_request_an_image(tmp_path):
    data = photos(tmp_path / "photos", "1.png", "2.png", "3.png")
    with web_server(tmp_path, InPieces) as url:
        shards, _ = look(f"{url}/photos/")
        assert [row[2] for row in rows_of(shards)] == ["1.png", "2.png", "3.png"]
        assert [row[2] for row in rows_of(look(f"{url}/photos/2.png")[0])] == ["2.png"]
    with counting_server(tmp_path) as (url, asked):
        [shard], _ = look(f"{url}/photos/")
        asked.clear()
        with open_shard(shard) as reader:
            assert len(list(reader.images())) == 3
        assert [method for method, _ in asked] == ["GET"] * 3
        (data / "2.png").unlink()
        with (
            open_shard(shard) as reader,
            pytest.raises(ShardError, match="photos/2.png' was listed and is not there any"),
        ):
            list(reader.select([1]))
