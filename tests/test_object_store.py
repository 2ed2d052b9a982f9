"""Data and run folder on a real S3 server: the same bytes as on a disk, and what happens when it refuses."""

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import s3fs
import test_repair
from conftest import TINY_CLASSES, TINY_FLAGS, encode, random_picture, start_ray_head, write_tiny_data
from fault_proxy import FORBIDDEN, RESET, fault_proxy
from images_as_people_have_them import in_all_forms
from object_store import BUCKET, environment, file_system, object_store, upload
from session import session

from exemplar_ray.data.shards import discover, inspect, open_shard

FLAGS = [*TINY_FLAGS, "--sample", "bottom", "q50"]
ANSWER = (
    "exemplars.parquet",
    "channels.parquet",
    "classes.parquet",
    "histograms.parquet",
    "images.parquet",
    "spectrum.parquet",
)


@pytest.fixture(scope="module")
def store():
    with object_store() as url, fault_proxy(url) as proxy:
        yield file_system(url), proxy


@pytest.fixture(scope="module")
def data(store, tmp_path_factory):
    """(folder, the same on the object store)"""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_data(folder, shards=3)
    return folder, upload(store[0], folder, "data")


@pytest.fixture(scope="module")
def command(store):
    """Run a command, on a Ray whose workers find the store; return (exit status, what it printed)."""
    variables = environment(store[1].url)
    with (
        contextmanager(start_ray_head)(variables) as head,
        session({**variables, "RAY_ADDRESS": head["address"]}) as run,
    ):
        yield run


def contents(file_system, folder):
    file_system.invalidate_cache()
    return {path: file_system.cat_file(path) for path in file_system.find(folder)}


def test_a_run_on_an_object_store_is_the_run_on_a_disk(store, data, command, tmp_path, monkeypatch):
    folder, uri = data
    out = f"s3://{BUCKET}/run"
    for where, to in ((folder, tmp_path / "run"), (uri, out)):
        status, text = command("run", "--data", where, "--out", to, *FLAGS)
        assert status == 0, text
    there = contents(store[0], f"{BUCKET}/run")
    for name in ANSWER:
        assert there[f"{BUCKET}/run/{name}"] == (tmp_path / "run" / name).read_bytes()
    assert not [name for name in there if name.endswith(".tmp")]

    # Who reads leaves everything as it was.
    status, text = command("status", out)
    assert (status, "shards: 3 in all, 3 done" in text) == (0, True), text
    assert command("report", out, "--out", tmp_path / "report")[0] == 0
    for name, value in environment(store[1].url).items():
        monkeypatch.setenv(name, value)
    from exemplar_ray import open_run

    run = open_run(out)
    assert run.table(rank=1).num_rows == 12 * 3
    assert run.exemplars(channel=3)[0].image.size == (48, 40)
    assert contents(store[0], f"{BUCKET}/run") == there
    asked = []
    store[1].on_request = lambda method, path: asked.append(method)
    status, text = command("run", "--data", uri, "--out", out, *FLAGS)
    store[1].on_request = None
    assert (status, "nothing to do" in text) == (0, True)
    assert {"GET"} <= set(asked) <= {"GET", "HEAD"}

    # The pages may lie there, too.
    assert command("report", out)[0] == 0
    pages = contents(store[0], f"{BUCKET}/run/report")
    on_disk = [path for path in (tmp_path / "report").rglob("*") if path.is_file()]
    assert pages == {
        f"{BUCKET}/run/report/{path.relative_to(tmp_path / 'report')}": path.read_bytes() for path in on_disk
    }


def test_a_store_of_activations_on_an_object_store_is_the_one_on_a_disk(store, data, command, tmp_path, monkeypatch):
    folder, uri = data
    out = f"s3://{BUCKET}/activations"
    for where, to in ((folder, tmp_path / "store"), (uri, out)):
        flags = [*TINY_FLAGS[:4], *TINY_FLAGS[6:], "--pool", "mean", "none"]
        status, text = command("activations", "--data", where, "--out", to, *flags)
        assert status == 0, text
    there = contents(store[0], f"{BUCKET}/activations")
    tables = [name for name in there if name.endswith(".parquet")]
    assert len(tables) == 3 * 2 + 3 + 2
    for name in tables:
        assert there[name] == (tmp_path / "store" / name.removeprefix(f"{BUCKET}/activations/")).read_bytes()
    for name, value in environment(store[1].url).items():
        monkeypatch.setenv(name, value)
    from exemplar_ray import open_store

    on_s3, on_disk = open_store(out), open_store(str(tmp_path / "store"))
    assert np.array_equal(on_s3.array("mixed", "none"), on_disk.array("mixed", "none"))
    assert on_s3.rows.equals(on_disk.rows)
    assert on_s3.files(pool="mean")[0] == f"{out}/layers/mixed/mean/000000.parquet"


def test_a_corrupt_shard_is_repaired_on_an_object_store(store, data, command):
    folder, _ = data
    fs, out = store[0], f"s3://{BUCKET}/repaired"
    uri = upload(fs, folder, "damaged")
    [damaged] = [path for path in fs.find(f"{BUCKET}/damaged") if "00001" in path]
    whole = fs.cat_file(damaged)
    fs.pipe_file(damaged, whole[: len(whole) // 2])
    status, text = command("run", "--data", uri, "--out", out, *FLAGS, "--retries", "0")
    assert (status, "1 of 3 shards have no result" in text) == (1, True), text
    before = contents(fs, f"{BUCKET}/repaired/parts")
    fs.pipe_file(damaged, whole)
    status, text = command("run", "--data", uri, "--out", out, *FLAGS)
    assert (status, text.count("scan 1/1")) == (0, 1), text
    after = contents(fs, f"{BUCKET}/repaired")
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", test_repair.DAMAGES)
def test_a_shard_that_was_wrong_is_scanned_again_when_it_is_right(kind, store, command, tmp_path):
    fs, out = store[0], f"s3://{BUCKET}/{kind}-run"
    folder = test_repair.write_shards(tmp_path / "data")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    name, content = test_repair.damaged(kind, whole)
    uri = upload(fs, folder, kind)
    fs.pipe_file(f"{BUCKET}/{kind}/{name}", content)
    assert command("run", "--data", uri, "--out", out, *FLAGS)[0] == 0
    before = contents(fs, f"{BUCKET}/{kind}-run")
    fs.pipe_file(f"{BUCKET}/{kind}/{name}", whole[name])
    status, text = command("run", "--data", uri, "--out", out, *FLAGS)
    assert (status, test_repair.scans(text)) == (0, [name]), text
    assert f"shard {name} changed after it was scanned" in text
    after = contents(fs, f"{BUCKET}/{kind}-run")
    assert command("run", "--data", folder, "--out", tmp_path / "run", *FLAGS)[0] == 0
    for file in ANSWER:
        assert after[f"{BUCKET}/{kind}-run/{file}"] == (tmp_path / "run" / file).read_bytes()
    assert before != after
    others = [path for path in before if "/parts/" in path and f"{test_repair.BROKEN:06d}." not in path]
    assert {path: after[path] for path in others} == {path: before[path] for path in others}


def test_other_data_under_the_same_names_is_refused(store, data, command, tmp_path):
    folder, _ = data
    fs, out = store[0], f"s3://{BUCKET}/changed-run"
    uri = upload(fs, folder, "changed")
    assert command("run", "--data", uri, "--out", out, *FLAGS)[0] == 0
    paths = write_tiny_data(tmp_path / "other", shards=3, first_seed=1000)
    for path in paths:
        fs.pipe_file(f"{BUCKET}/changed/{path.name}", path.read_bytes())
    before = contents(fs, f"{BUCKET}/changed-run")
    status, text = command("run", "--data", uri, "--out", out, *FLAGS)
    assert (status, "shard train-00000-of-00003.parquet changed after it was scanned" in text) == (2, True), text
    assert contents(fs, f"{BUCKET}/changed-run") == before


def test_a_store_that_is_gone_has_not_said_that_there_is_no_run(store, data, command):
    _, uri = data
    fs, out = store[0], f"s3://{BUCKET}/gone-run"
    assert command("run", "--data", uri, "--out", out, *FLAGS)[0] == 0
    before = contents(fs, f"{BUCKET}/gone-run")
    store[1].reseed(0, rate=1.0, kinds=(RESET,))
    # The client's own attempts, as many as it is told, are not what is tried here: they take half a minute.
    few_attempts = {**environment(store[1].url), "AWS_MAX_ATTEMPTS": "1"}
    try:
        asked = [sys.executable, "-m", "exemplar_ray", "status", out]
        finished = subprocess.run(asked, env=few_attempts, capture_output=True, text=True, check=False)
    finally:
        store[1].reseed(0)
    text = finished.stdout + finished.stderr
    assert finished.returncode == 2, text
    [line] = text.strip().splitlines()
    assert line.startswith("exemplar-ray: error: ")
    assert re.search("ConnectionClosedError|EndpointConnectionError", line)
    assert "that may pass" in line
    assert "aws configure" not in line
    assert "is no run folder" not in line
    assert contents(fs, f"{BUCKET}/gone-run") == before


@pytest.mark.parametrize("what", ["data", "run folder"])
def test_wrong_credentials_are_one_line_that_says_so(store, data, command, tmp_path, what):
    folder, uri = data
    store[1].reseed(0, rate=1.0, kinds=(FORBIDDEN,))
    try:
        where, to = (uri, tmp_path / "run") if what == "data" else (folder, f"s3://{BUCKET}/forbidden")
        status, text = command("run", "--data", where, "--out", to, *FLAGS)
    finally:
        store[1].reseed(0)
    assert status == 2, text
    assert text.count("\n") == 1, text
    assert "denied" in text.lower(), text


# Images and tars ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(store, tmp_path_factory):
    """{form: (where it is on the disk, and in the store)} of 150 images."""
    images = [(encode(random_picture(i)), f"{i:03d}.png", i % 3) for i in range(150)]
    forms = in_all_forms(tmp_path_factory.mktemp("forms"), images, TINY_CLASSES)
    for form in ("folder", "tars"):
        for path in (path for path in forms[form].rglob("*") if path.is_file()):
            store[0].pipe_file(f"{BUCKET}/{form}/{path.relative_to(forms[form])}", path.read_bytes())
    return {form: (forms[form], f"s3://{BUCKET}/{form}") for form in ("folder", "tars")}


@pytest.mark.parametrize("form", ["folder", "tars"])
def test_images_and_tars_on_an_object_store_are_those_on_a_disk(form, forms, store, command, tmp_path):
    local, uri = forms[form]
    run, fs = tmp_path / "run", store[0]
    for where, to in ((local, tmp_path / "local"), (uri, run)):
        status, text = command("run", "--data", where, "--out", to, *FLAGS)
        assert status == 0, text
    for name in ANSWER:
        assert (run / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    # Another file in a place concerns the shard that it is in.
    changed = sorted(fs.find(f"{BUCKET}/{form}"))[-1]
    before = fs.cat_file(changed)
    content = bytearray(before)
    content[content.rindex(b"IDAT") + 60] ^= 1
    fs.pipe_file(changed, bytes(content))
    try:
        status, text = command("run", "--data", uri, "--out", run, *FLAGS, "--max-skipped", "1")
        last = {"folder": "images-00001-of-00002", "tars": "train-0001.tar"}[form]
        assert (status, test_repair.scans(text)) == (0, [last]), text
        assert f"{last} changed after it was scanned: other bytes in rows 0-99" in text
    finally:
        fs.pipe_file(changed, before)


def test_an_image_is_a_request_and_a_tar_two_and_one_a_row(forms, store, monkeypatch):
    for name, value in environment(store[1].url).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    calls = []
    original = s3fs.S3FileSystem._call_s3

    async def counted(self, method, *arguments, **options):
        calls.append(method)
        return await original(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)

    def asked(function):
        calls.clear()
        return function(), list(calls)

    shards, of_images = asked(lambda: discover([forms["folder"][1]]))
    # What is in the folder, and what is below it: the store has no folders, and says so.
    assert set(of_images) <= {"list_objects_v2", "head_object"}
    assert len(of_images) <= 4
    assert [shard.stamp is not None for shard in shards] == [True, True]
    (shards, _), looking = asked(lambda: inspect(shards))
    assert looking == []
    with open_shard(shards[0]) as reader:
        rows, reading = asked(lambda: list(reader.images()))
        assert reading == ["get_object"] * len(rows) == ["get_object"] * 100
        picked, reading = asked(lambda: list(reader.select([3, 7])))
        assert (picked, reading) == ([rows[3], rows[7]], ["get_object"] * 2)

    shards, _ = asked(lambda: discover([forms["tars"][1]]))
    (shards, _), looking = asked(lambda: inspect(shards))
    assert looking == ["get_object"] * 2

    def read():
        with open_shard(shards[0]) as reader:
            return list(reader.images()), reader.places

    # Another process asks first what the file is now: no piece of another one comes.
    s3fs.S3FileSystem.clear_instance_cache()
    (rows, places), reading = asked(read)
    assert (len(rows), reading) == (100, ["head_object", "get_object"])
    s3fs.S3FileSystem.clear_instance_cache()

    def pick():
        with open_shard(replace(shards[0], places=places)) as reader:
            return list(reader.select([3, 7]))

    assert asked(pick) == ([rows[3], rows[7]], ["head_object", "get_object", "get_object"])
    s3fs.S3FileSystem.clear_instance_cache()
