"""The same images give the same exemplars in whatever form, and a run of each form is a run like any other."""

import io
import json
import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SAMPLE, TINY_FLAGS, encode, needs_shared, random_picture
from images_as_people_have_them import in_all_forms, put, samples_of, write_tar
from PIL import Image
from test_repair import scans

FLAGS = [*TINY_FLAGS, "--top-k", "10", "--sample", "bottom", "random", "q50", "--class-top-k", "1"]
FORMS = ("parquet", "folder", "tars", "bytes")
KEYS = ("layer", "statistic", "sample", "channel", "rank")

pytestmark = pytest.mark.usefixtures("ray_cluster")


def answer_of(run):
    """{(layer, statistic, sample, channel, rank): (activation, image)}, the image by its bytes."""
    images = {}
    if (run / "images.parquet").exists():
        table = pq.read_table(run / "images.parquet", columns=["shard", "row", "image"]).to_pylist()
        images = {(row["shard"], row["row"]): row["image"]["bytes"] for row in table}
    columns = [*KEYS, "shard", "row", "activation", "image"]
    return {
        tuple(row[key] for key in KEYS): (
            row["activation"],
            (row["image"] or {}).get("bytes") or images[row["shard"], row["row"]],
        )
        for row in pq.read_table(run / "exemplars.parquet", columns=columns).to_pylist()
    }


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """200 of the real images in all forms."""
    tables = [pq.read_table(path) for path in sorted(SAMPLE.glob("*.parquet"))[:2]]
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    rows = [row for table in tables for row in table.to_pylist()]
    images = [(row["image"]["bytes"], row["image"]["path"], row["label"]) for row in rows]
    return in_all_forms(tmp_path_factory.mktemp("forms"), images, features["label"]["names"])


@pytest.fixture(scope="module")
def runs(forms, tmp_path_factory):
    """{form: the run folder}, and what was said."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("runs")
    for form, data in forms.items():
        assert main(["run", "--data", str(data), "--out", str(folder / form), *FLAGS]) == 0
    return {form: folder / form for form in forms}


@needs_shared
def test_the_same_200_images_give_the_same_exemplars_in_all_forms(forms, runs):
    expected = answer_of(runs["parquet"])
    # A percentile is two of 200 images.
    assert len(expected) == 12 * (3 * 10 + 2)
    for form in FORMS[1:]:
        found = answer_of(runs[form])
        assert found.keys() == expected.keys()
        for key, exemplar in expected.items():
            assert found[key] == exemplar, (form, key)
    # Of what class an image is, its file says in three of them, and numbers in one.
    of_synset = {}
    for form in FORMS[:3]:
        rows = pq.read_table(runs[form] / "exemplars.parquet", columns=[*KEYS, "synset_id"]).to_pylist()
        of_synset[form] = {tuple(row[key] for key in KEYS): row["synset_id"] for row in rows}
    assert of_synset["parquet"] == of_synset["folder"] == of_synset["tars"]
    # Rows are true: who looks there finds the image.
    folder = pq.read_table(runs["folder"] / "exemplars.parquet", columns=["shard", "row", "image_path", "class_name"])
    files = sorted(path.relative_to(forms["folder"]).as_posix() for path in forms["folder"].rglob("*.JPEG"))
    for row in folder.to_pylist():
        shard = int(re.fullmatch(r"images-(\d{5})-of-00002", row["shard"])[1])
        assert row["image_path"] == files[100 * shard + row["row"]]
        assert row["class_name"] == row["image_path"].split("/")[0]


@needs_shared
@pytest.mark.parametrize("form", FORMS[1:])
def test_every_command_takes_every_form(forms, runs, form, cli, tmp_path):
    run, data = runs[form], forms[form]
    status, text = cli("run", "--data", data, "--out", run, *FLAGS)
    assert (status, "nothing to do" in text) == (0, True), text
    status, text = cli("status", run)
    assert (status, "rows: 200 read = 200 scored + 0 skipped" in text) == (0, True), text
    said = {
        "folder": "labels are the names of 200 folders, such as 'n01514668'",
        "tars": "2 done",
        "bytes": "images are read from column 'jpg'",
    }
    assert said[form] in text
    status, text = cli("plan", "--data", data, *TINY_FLAGS)
    assert status == 0, text
    assert re.search(r"2 shards, (about )?(\d+) images;", text)
    # 12 channels, with 3 exemplars and a margin of 10 each, are gathered.
    requests = {"folder": 200 + 156, "tars": 2 * 2 + 156}
    assert form == "bytes" or f"the storage gets about {requests[form]} requests" in text
    for arguments in (("check", run), ("check", "--data", data, *TINY_FLAGS[:2], *TINY_FLAGS[-2:])):
        status, text = cli(*arguments, "--images", "40")
        assert status == 0, text
        # Of a network whose outputs are no classes only the first guesses are looked at.
        assert re.search(r"looked at (5|39|40) of \d+ images, from 2 of 2 shards", text), text
    assert cli("report", run)[0] == 0
    status, text = cli("publish", run, "user/name", "--dry-run", tmp_path / "public")
    assert status == 0, text
    public = (tmp_path / "public" / "run.json").read_text()
    assert "files" not in json.loads(public)["shards"][0]
    assert str(data) not in public
    # What a rerun is told, as far as the run folder tells.
    (run / "summary.json").rename(tmp_path / "summary.json")
    try:
        [line] = [line for line in cli("status", run)[1].splitlines() if line.startswith("to go on")]
    finally:
        (tmp_path / "summary.json").rename(run / "summary.json")
    pattern = {"folder": data, "tars": f"{data}/train-0000.tar", "bytes": f"{data}/0.parquet"}[form]
    assert f"'--data', '{pattern}'" in line


def pictures(count, first=0):
    """(bytes, path, label) of so many images of three classes."""
    return [(encode(random_picture(first + i)), f"{i:04d}.png", i % 3) for i in range(count)]


CLASSES = ["ant", "bee", "cow"]


def write_folder(folder, count=450):
    """Five shards of images in the folders of three classes."""
    for content, path, label in pictures(count):
        put(content, folder / CLASSES[label] / path)
    return folder


def test_a_folder_of_which_a_file_changes_is_scanned_again_where_it_did(tmp_path, cli):
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    command = ["run", "--data", data, "--out", run, *FLAGS]
    assert cli(*command)[0] == 0
    before = {path.name: path.read_bytes() for path in (run / "parts").iterdir()}
    assert len(list((run / "parts").glob("*.json"))) == 5
    # Another image under the same name, of another size; and one of the same size, of which only its storage tells.
    put(encode(random_picture(9999)), data / "ant" / "0000.png")
    other = bytearray((data / "cow" / "0449.png").read_bytes())
    other[len(other) // 2] ^= 128
    put(bytes(other), data / "cow" / "0449.png")
    status, text = cli(*command, "--max-skipped", "1")
    assert status == 0, text
    assert sorted(scans(text)) == ["images-00000-of-00005", "images-00004-of-00005"]
    assert re.search(r"images-00000-of-00005 changed after it was scanned: \d+ bytes then, \d+ now", text)
    assert "images-00004-of-00005 changed after it was scanned: other bytes in rows 0-99" in text
    after = {path.name: path.read_bytes() for path in (run / "parts").iterdir()}
    assert {name for name in before if before[name] == after[name]} == {
        name for name in before if name[:6] not in ("000000", "000004")
    }
    # That file is no image any more, which the run says by its name.
    assert "row 49 (cow/0449.png): " in cli("status", run)[1]
    # To touch files is to read them once.
    os.utime(data / "bee" / "0001.png")
    status, text = cli(*command, "--max-skipped", "1")
    assert (status, scans(text), "the same" in text) == (0, [], True), text

    fresh = tmp_path / "fresh"
    assert cli("run", "--data", data, "--out", fresh, *FLAGS, "--max-skipped", "1")[0] == 0
    assert answer_of(fresh) == answer_of(run)


def test_a_file_that_is_gone_is_one_line(tmp_path, cli, monkeypatch):
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    command = ["run", "--data", data, "--out", run, *FLAGS]
    # Between the listing and the scan, one is deleted and one is written to.
    from exemplar_ray.exemplars import job

    resolve = job.resolve_spec

    def later(*arguments):
        (data / "ant" / "0003.png").unlink()
        (data / "cow" / "0002.png").write_bytes(b"half")
        return resolve(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "resolve_spec", later)
        status, text = cli(*command)
    assert (status, text.count("INCOMPLETE: 2 of 5")) == (1, 1), text
    assert f"images-00000-of-00005 changed: '{data}/ant/0003.png' was listed and is not there any more" in text
    assert re.search(rf"images-00003-of-00005 changed: '{data}/cow/0002.png' had \d+ bytes .* and has 4 now", text)
    # For good: all behind it are others, which is other data.
    status, text = cli(*command)
    assert (status, text.count("\n")) == (2, 1), text
    assert "data differs: shard images-0000" in text
    # One of the last shard concerns that one only.
    write_folder(data)
    assert cli(*command)[0] == 0
    (data / "cow" / "0449.png").unlink()
    status, text = cli(*command)
    assert (status, scans(text)) == (0, ["images-00004-of-00005"]), text
    assert "images-00004-of-00005 changed after it was scanned: 50 images then, 49 now" in text
    assert "449 images searched" in text
    # Another shard more is another run.
    for i in range(60):
        put(encode(random_picture(i)), data / "dog" / f"{i}.png")
    status, text = cli(*command)
    assert (status, text.count("\n"), "these keys differ: data" in text) == (2, 1, True), text


def test_a_tar_that_changes_or_is_torn(tmp_path, cli):
    images = [(content, label) for content, _, label in pictures(240)]
    data, run = tmp_path / "data", tmp_path / "run"
    for i in range(4):
        write_tar(data / f"{i}.tar", samples_of(images[60 * i : 60 * i + 60]))
    whole = {path.name: path.read_bytes() for path in data.iterdir()}
    (data / "2.tar").write_bytes(whole["2.tar"][:-50_000])
    command = ["run", "--data", data, "--out", run, *FLAGS]
    status, text = cli(*command)
    assert (status, "INCOMPLETE: 1 of 4 shards" in text) == (1, True), text
    assert re.search(r"2.tar is torn: it ends at byte \d+, .*; restore the file", text)
    (data / "2.tar").write_bytes(whole["2.tar"])
    status, text = cli(*command)
    assert (status, scans(text)) == (0, ["2.tar"]), text
    expected = answer_of(run)
    # One bit of an image: of this only reading tells.
    changed = bytearray(whole["1.tar"])
    changed[changed.index(images[90][0]) + 1000] ^= 128
    (data / "1.tar").write_bytes(bytes(changed))
    status, text = cli(*command, "--max-skipped", "1")
    assert (status, scans(text)) == (0, ["1.tar"]), text
    assert "1.tar changed after it was scanned: other bytes in rows 0-99" in text
    (data / "1.tar").write_bytes(whole["1.tar"])
    status, text = cli(*command)
    assert (status, scans(text), answer_of(run) == expected) == (0, ["1.tar"], True), text
    # Where rows are stands in the records: merging again reads only winners.
    assert len(json.loads((run / "parts" / "000000.json").read_text())["places"]) == 61
    (run / "exemplars.parquet").unlink()
    assert cli("merge", run)[0] == 0
    assert answer_of(run) == expected


def test_grey_digits_of_28_by_28_pixels(tmp_path, cli):
    """As PNGs of mode L, by themselves and inside parquet; the network takes colours."""
    images = []
    for i in range(120):
        pixels = np.asarray(random_picture(i, 28, 28).convert("L"))
        images.append((encode(pixels), f"{i:03d}.png", i % 10))
    assert Image.open(io.BytesIO(images[0][0])).mode == "L"
    forms = in_all_forms(tmp_path, images, [str(digit) for digit in range(10)])
    answers = {}
    for form in ("parquet", "folder", "tars"):
        status, text = cli("run", "--data", forms[form], "--out", tmp_path / f"{form}-run", *FLAGS)
        assert status == 0, text
        answers[form] = answer_of(tmp_path / f"{form}-run")
        rows = pq.read_table(
            tmp_path / f"{form}-run" / "exemplars.parquet", columns=["label", "image_path"]
        ).to_pylist()
        assert all(row["label"] == int(row["image_path"][-7:-4]) % 10 for row in rows)
    assert answers["parquet"] == answers["folder"] == answers["tars"]


def test_images_and_shards_in_one_run_and_a_folder_that_moves(tmp_path, cli):
    """Shards of several forms are shards like any others, and a folder is the same wherever it is."""
    data = write_folder(tmp_path / "a" / "photos", 60)
    images = [(content, None) for content, _, _ in pictures(20, first=500)]
    write_tar(tmp_path / "a" / "more.tar", samples_of(images))
    flags = ["--label-column", "none", *FLAGS]
    status, text = cli("run", "--data", data, tmp_path / "a" / "more.tar", "--out", tmp_path / "run", *flags)
    assert status == 0, text
    shards = json.loads((tmp_path / "run" / "run.json").read_text())["shards"]
    assert [shard["name"] for shard in shards] == ["more.tar", "photos/images-00000-of-00001"]
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = [tmp_path / "b" / "photos", tmp_path / "b" / "more.tar"]
    status, text = cli("run", "--data", *moved, "--out", tmp_path / "run", *flags)
    assert (status, "nothing to do" in text) == (0, True), text


def test_a_part_of_the_images_is_the_same_in_a_folder_and_in_tars(tmp_path, cli):
    """Of tars, which nobody has counted before, all headers are read for that; then few images, or all."""
    images = pictures(300)
    forms = in_all_forms(tmp_path, images, CLASSES)
    for flags in (["--images", "30"], ["--per-class", "80"]):
        answers, said = {}, {}
        for form in ("parquet", "tars", "folder"):
            run = tmp_path / f"{form}{flags[0]}"
            command = ["run", "--data", forms[form], "--out", run, *FLAGS, *flags, "--seed", "7"]
            status, said[form] = cli(*command)
            assert status == 0, said[form]
            answers[form] = answer_of(run)
            assert "nothing to do" in cli(*command)[1]
            records = [json.loads(path.read_text()) for path in sorted((run / "parts").glob("*.json"))]
            assert sum(record["rows"] for record in records) == {"--images": 30, "--per-class": 240}[flags[0]]
            # To touch a file is to read again what was read, where that is known.
            path = sorted(path for path in forms[form].rglob("*") if path.is_file())[0]
            os.utime(path)
            status, text = cli(*command)
            assert (status, "the same" in text or "was not recorded" in text) == (0, True), text
            assert answer_of(run) == answers[form]
        assert "of 300 images" in said["tars"]
        # Drawn by paths: those of these two are the same.
        assert answers["tars"] == answers["parquet"]
    status, text = cli("plan", "--data", forms["tars"], *TINY_FLAGS, "--classes", "ant", "2")
    assert (status, "there is no class 'ant'" in text) == (2, True), text
    status, text = cli("plan", "--data", forms["folder"], *TINY_FLAGS, "--classes", "ant", "2")
    assert (status, "3 shards, 200 images" in text) == (0, True), text
