"""The activations of every image: the right rows, whatever becomes of shards, workers and storages."""

import hashlib
import json
import shutil

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import BVLC, SAMPLE, TINY_CLASSES, TINY_NETWORK, encode, needs_shared, python_without, random_picture
from tiny_network import trained

from exemplar_ray import UsageError, open_store
from exemplar_ray.activations import rows_table
from exemplar_ray.activations.rows_table import RowsWriter, read_values
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.network.trunk import to_input

TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
NETWORK = ["--model", TINY_NETWORK, "--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}"]
LAYERS = ["--layer", "conv1", "mixed", "classifier"]
POOLS = ["--pool", "mean", "max", "center", "none"]
SHARDS, ROWS = 3, 10


def write_data(folder, broken=None):
    """Shards of tiny images, of which one row may be none."""
    images = [
        LabelledImage(encode(random_picture(i)) if i != broken else b"none", f"n0144076{i % 3}_{i}.JPEG", i % 3)
        for i in range(SHARDS * ROWS)
    ]
    write_images(images, str(folder), TINY_CLASSES, ROWS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    write_data(folder, broken=14)
    return folder


@pytest.fixture(scope="module")
def store(data, tmp_path_factory, ray_cluster):
    """A store of three layers, of which one is a vector, in every pool; one image was skipped."""
    from exemplar_ray.cli import main

    out = tmp_path_factory.mktemp("store") / "store"
    assert (
        main(["activations", "--data", str(data), "--out", str(out), *NETWORK, *LAYERS, *POOLS, "--max-skipped", "1"])
        == 0
    )
    return out


def by_a_plain_loop(data):
    """{(shard, row): {layer: maps}} of every image that can be decoded, one at a time through the plain network."""
    module, found, outputs = trained(), {}, {}
    for name in ("conv1", "mixed", "classifier"):
        module.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    for path in sorted(data.glob("*.parquet")):
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            if row["image"]["bytes"] == b"none":
                continue
            with torch.no_grad():
                module(to_input(torch.tensor(decode_and_crop(row["image"]["bytes"], TINY)[None]), TINY))
            found[path.name, number] = {name: output[0].numpy().copy() for name, output in outputs.items()} | {
                "of": row
            }
    return found


def pooled(maps, pool):
    if maps.ndim == 1 or pool == "none":
        return maps
    middle = maps[:, maps.shape[1] // 2, maps.shape[2] // 2]
    return {"mean": maps.mean((1, 2)), "max": maps.max((1, 2)), "center": middle}[pool]


def test_every_row_is_its_images_by_a_plain_loop(store, data):
    plain, opened = by_a_plain_loop(data), open_store(str(store))
    ids = opened.rows.to_pylist()
    assert len(ids) == len(opened) == SHARDS * ROWS - 1
    assert {(row["shard"], row["row"]) for row in ids} == plain.keys()
    for row in ids:
        of = plain[row["shard"], row["row"]]["of"]
        assert row["image_path"] == of["image"]["path"]
        assert row["label"] == of["label"]
        assert row["synset_id"] == of["image"]["path"][:9]
        assert row["class_name"] == TINY_CLASSES[of["label"]]
    for layer in opened.layers:
        for pool in opened.pools:
            array = opened.array(layer, pool)
            expected = [pooled(plain[row["shard"], row["row"]][layer], pool) for row in ids]
            assert array.dtype == np.float32
            assert array.shape[1:] == expected[0].shape
            assert np.allclose(array, expected, rtol=1e-5, atol=1e-5)
            batches = list(opened.batches(layer, pool))
            assert np.array_equal(np.concatenate([values for _, values in batches]), array)
            assert pa.concat_tables([of for of, _ in batches]).equals(opened.rows)


def test_any_reader_of_parquet_gets_the_same(store, tmp_path):
    opened = open_store(str(store))
    array, files = opened.array("mixed", "mean"), opened.files("mixed", "mean")
    assert [str(file) for file in sorted((store / "layers" / "mixed" / "mean").iterdir())] == files
    table = pq.read_table(store / "layers" / "mixed" / "mean")
    assert np.array_equal(np.array(table["activation"].to_pylist(), np.float32), array)
    assert table.select(opened.rows.column_names).equals(opened.rows)
    found = duckdb.sql(f"select shard, row, activation[3] from read_parquet('{store}/layers/mixed/mean/*.parquet')")
    assert [value for _, _, value in found.fetchall()] == array[:, 2].tolist()
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert np.array_equal(np.array(loaded["activation"], np.float32), array)
    assert loaded["row"] == opened.rows["row"].to_pylist()


def test_neither_torch_nor_ray_is_needed_to_read(store):
    program = (
        "import sys; from exemplar_ray import open_store; print(open_store(sys.argv[1]).array('mixed', 'max').sum())"
    )
    said = python_without("torch ray", program, store)
    assert float(said) == pytest.approx(open_store(str(store)).array("mixed", "max").sum())


def test_where_rows_are_is_in_the_index(store):
    index = pq.read_table(store / "index.parquet").to_pylist()
    assert len(index) == SHARDS * 3 * 4
    rows = open_store(str(store)).rows
    for entry in index:
        table = pq.read_table(store / entry["file"])
        assert len(table) == entry["rows"]
        assert table.select(rows.column_names).equals(rows.slice(entry["first_row"], entry["rows"]))
        assert set(table["shard"].to_pylist()) == {entry["shard"]}
        content = (store / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_a_digest_tells_apart_what_is_stored(store):
    opened = open_store(str(store))
    digests = {opened.digest(layer, pool) for layer in opened.layers for pool in opened.pools}
    assert len(digests) == len(opened.layers) * len(opened.pools) - 3  # all pools of a vector are the vector


def test_moments_are_numpys(store):
    opened = open_store(str(store))
    array = opened.array("mixed", "mean").astype(np.float64)
    found = opened.moments("mixed", "mean")
    assert found.count == len(array)
    assert np.allclose(found.mean, array.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(array, rowvar=False), rtol=1e-10)
    of_class = array[np.array(opened.rows["label"]) == 2]
    found = opened.moments("mixed", "mean", label=2)
    assert found.count == len(of_class) == SHARDS * ROWS // 3 - 1
    assert np.allclose(found.covariance, np.cov(of_class, rowvar=False), rtol=1e-10)
    with pytest.raises(UsageError, match="there are no moments of 'mixed' \\(none\\)"):
        opened.moments("mixed", "none")


def contents(store):
    """{name: content} of everything that does not say when and where it was made."""
    files = [path for path in store.rglob("*.parquet") if path.name != "report"]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def test_a_failed_shard_is_repaired_and_bytes_are_the_same_however_they_come_about(store, data, tmp_path, cli):
    copy, out = tmp_path / "data", tmp_path / "store"
    shutil.copytree(data, copy)
    shards = sorted(copy.glob("*.parquet"))
    whole = shards[2].read_bytes()
    shards[2].write_bytes(whole[:-50])
    # Given in another order, with another number of CPUs, and one shard that fails.
    command = ["activations", "--data", *reversed(shards), "--out", out, *NETWORK, *LAYERS, *POOLS]
    status, said = cli(*command, "--cpus-per-task", "2", "--max-skipped", "1")
    assert (status, f"{shards[2].name}:" in said, "merge" in said) == (1, True, False), said
    with pytest.raises(UsageError, match="has no result yet"):
        open_store(str(out))
    shards[2].write_bytes(whole)
    status, said = cli(*command, "--max-skipped", "1")
    assert (status, "2 already done" in said, "29 images" in said, "1 skipped" in said) == (0, True, True, True), said
    assert contents(out) == contents(store)
    # A file that is gone is made again, the others are kept.
    (out / "layers" / "mixed" / "none" / "000001.parquet").unlink()
    status, said = cli("status", out)
    assert (status, "1 pending" in said) == (1, True), said
    status, said = cli(*command, "--max-skipped", "1")
    assert (status, "2 already done" in said) == (0, True), said
    assert contents(out) == contents(store)
    status, said = cli(*command, "--max-skipped", "1")
    assert (status, "nothing to do" in said) == (0, True), said
    status, said = cli(*command, "--dtype", "float16")
    assert (status, "these keys differ: dtype" in said) == (2, True), said


def test_a_shard_with_too_many_broken_images_fails_and_leaves_nothing(data, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    status, said = cli("activations", "--data", data, "--out", tmp_path / "store", *NETWORK, "--layer", "mixed")
    assert (status, "1 undecodable images, max_skipped is 0" in said) == (1, True), said
    assert not list((tmp_path / "store").rglob("000001.parquet"))
    assert len(list((tmp_path / "store" / "layers" / "mixed" / "mean").iterdir())) == SHARDS - 1


def test_a_run_has_a_store_of_its_images_in_its_statistics(data, store, tmp_path, cli):
    run = tmp_path / "run"
    flags = [*NETWORK, "--layer", "mixed", "--statistic", "max", "mean", "--max-skipped", "1", "--top-k", "3"]
    assert cli("run", "--data", data, "--out", run, *flags)[0] == 0
    status, said = cli("activations", run, "--max-skipped", "1")
    assert status == 0, said
    of_run, of_data = open_store(str(run / "activations")), open_store(str(store))
    assert of_run.pools == ("max", "mean")
    assert of_run.rows.equals(of_data.rows)
    assert np.array_equal(of_run.array("mixed", "max"), of_data.array("mixed", "max"))
    # What the run ranks is what the store has.
    where = {(row["shard"], row["row"]): place for place, row in enumerate(of_run.rows.to_pylist())}
    array = of_run.array("mixed", "mean")
    for row in pq.read_table(run / "exemplars.parquet").to_pylist():
        if row["statistic"] == "mean":
            assert array[where[row["shard"], row["row"]], row["channel"]] == pytest.approx(row["activation"], rel=1e-5)
    status, said = cli("activations", run, "--layer", "mixed")
    assert (status, "says already what layer is" in said) == (2, True), said


def test_what_float16_cannot_hold_is_counted_and_refused(data, tmp_path, cli):
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(TINY_NETWORK).rpartition('/')[0]!r})\nfrom tiny_network import trained\n"
        "import torch\n\n\ndef make():\n    module = trained()\n    with torch.no_grad():\n"
        "        module.narrow.weight *= 3e5\n        module.wide.bias[1] = float('inf')\n    return module\n"
    )
    flags = ["--model", f"{tmp_path / 'net.py'}:make", *NETWORK[2:], "--layer", "mixed", "--pool", "max"]
    flags += ["--max-skipped", "1", "--dtype", "float16"]
    status, said = cli("activations", "--data", data, "--out", tmp_path / "store", *flags)
    assert (status, "activations of 'mixed' (max) are beyond float16" in said) == (1, True), said
    status, said = cli("activations", "--data", data, "--out", tmp_path / "store", *flags, "--allow-overflow")
    assert (status, "became infinity" in said, "gave NaN or infinity" in said) == (0, True, True), said
    status, said = cli("activations", "--data", data, "--out", tmp_path / "whole", *flags[:-2])
    assert (status, "became infinity" in said) == (0, False), said
    half, single = (open_store(str(tmp_path / name)) for name in ("store", "whole"))
    assert half.array().dtype == np.float16
    with np.errstate(over="ignore"):
        assert np.array_equal(half.array(), single.array().astype(np.float16))
    unusual = json.loads((tmp_path / "store" / "summary.json").read_text())["unusual"]
    became = np.isinf(half.array()) & np.isfinite(single.array())
    assert became.any()
    assert sum(one["overflowed"] for one in unusual) == became.sum()
    # Channel 1 is infinite on every image.
    assert sum(one["not_finite"] for one in unusual) == len(half)
    assert half.moments().count == 0


def test_batches_for_extraction_scripts_hold_each_image_with_its_activations(store, data, tmp_path, cli):
    out = tmp_path / "batches"
    flags = ["--format", "npz", "--layer", "mixed", "conv1", "--pool", "none", "--batch-size", "8"]
    status, said = cli("export", store, out, *flags)
    assert (status, "29 images" in said) == (0, True), said
    info = json.loads((out / "dataset_info.json").read_text())
    assert (info["images"], info["batches"], info["trained"]) == (29, 4, True)
    plain, seen = by_a_plain_loop(data), 0
    for number in range(4):
        arrays = np.load(out / f"batch_{number:06d}.npz")
        batch = json.loads((out / f"batch_{number:06d}.json").read_text())
        assert batch["layers"] == list(arrays) == ["mixed", "conv1"]
        assert batch["batch_size"] == len(batch["samples"]) == len(arrays["mixed"]) == (8 if number < 3 else 5)
        for place, sample in enumerate(batch["samples"]):
            of = plain[sample["shard"], sample["row"]]
            assert sample["batch_index"] == place
            assert sample["original_path"] == of["of"]["image"]["path"]
            assert (out / sample["image"]).read_bytes() == of["of"]["image"]["bytes"]
            assert (sample["class_id"], sample["class_name"]) == (of["of"]["label"], TINY_CLASSES[of["of"]["label"]])
            assert sample["synset_id"] == sample["original_path"][:9]
            assert np.allclose(arrays["conv1"][place], of["conv1"].reshape(-1), rtol=1e-5, atol=1e-5)
            seen += 1
    assert seen == len(list((out / "images").iterdir())) == 29
    status, said = cli("export", store, out, *flags)
    assert (status, "is no new or empty local folder" in said) == (2, True), said


def test_arrays_for_numpy_come_with_what_their_rows_are(store, tmp_path, cli):
    status, said = cli("export", store, tmp_path / "out", "--format", "npy", "--pool", "mean")
    assert status == 0, said
    opened = open_store(str(store))
    for layer in opened.layers:
        assert np.array_equal(np.load(tmp_path / "out" / f"{layer}.npy", mmap_mode="r"), opened.array(layer, "mean"))
    assert pq.read_table(tmp_path / "out" / "rows.parquet").equals(opened.rows)
    status, said = cli("export", store, tmp_path / "other", "--format", "npy")
    assert (status, "the store has several: give pool" in said) == (2, True), said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pool", "median"], "unknown pool 'median'"),
        (["--pool", "mean", "mean"], "pool names 'mean' twice"),
        (["--pool", "cls"], "layer 'mixed' has no class token"),
        (["--dtype", "float64"], "unknown dtype 'float64'"),
        (["--batch-size", "4"], "unrecognized arguments: --batch-size"),
        (["--layer", "none"], "unknown layer 'none'"),
    ],
)
def test_what_cannot_be_is_one_line(flags, message, data, tmp_path, cli, ray_cluster):
    layer = [] if "--layer" in flags else ["--layer", "mixed"]
    status, said = cli("activations", "--data", data, "--out", tmp_path / "store", *NETWORK, *layer, *flags)
    assert status == 2, said
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "store").exists()


def test_activations_in_several_pages_end_the_task(tmp_path, monkeypatch):
    """A reader takes them in one piece: that they are so is seen when they are written."""

    def write(name):
        with RowsWriter(tmp_path / name, (8,), "float32", lambda _: None) as writer:
            none = dict.fromkeys(("image_path", "label", "synset_id", "class_name"))
            values = np.random.default_rng(0).random((5000, 8), np.float32)
            writer.add([{"shard": "a", "row": row, **none} for row in range(5000)], values)
            writer.close()
        return values

    values, read = write("whole.parquet"), np.empty((5000, 8), np.float32)
    with open(tmp_path / "whole.parquet", "rb") as file:
        assert read_values(file, read)
        assert not read_values(file, read[:-1])
    assert np.array_equal(read, values)
    monkeypatch.setattr(rows_table, "_ONE_PAGE", 1024)
    with pytest.raises(rows_table.ScatteredValuesError, match="do not lie in one piece"):
        write("scattered.parquet")


def test_what_is_no_store_is_said(store, tmp_path):
    with pytest.raises(UsageError, match="the store has several: give layer, one of classifier, conv1, mixed"):
        open_store(str(store)).array()
    with pytest.raises(UsageError, match="the store has no pool 'average'"):
        open_store(str(store)).array("mixed", "average")
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    # The same rows, written by somebody else: another file.
    file = copy / "layers" / "mixed" / "mean" / "000001.parquet"
    pq.write_table(pq.read_table(file), file)
    with pytest.raises(UsageError, match="000001.parquet is not the file that was stored"):
        open_store(str(copy)).array("mixed", "mean")
    (copy / "run.json").write_text(json.dumps({"identity": {}, "shards": [], "fingerprint": ""}))
    with pytest.raises(UsageError, match="is no store of activations"):
        open_store(str(copy))


@needs_shared
def test_real_images_in_a_trained_network(tmp_path, cli, ray_cluster):
    from brute_force import LAYERS as OF_NETWORK
    from brute_force import activations

    shard = sorted(SAMPLE.glob("*.parquet"))[0]
    flags = ["--model", f"{BVLC}:load", "--layer", *OF_NETWORK["bvlc"], "--pool", "mean", "max", "center"]
    flags += ["--preprocess", "{resize: 256, crop: 224, scale: 255, mean: [123, 117, 104], std: [1, 1, 1]}"]
    assert cli("activations", "--data", shard, "--out", tmp_path / "store", *flags)[0] == 0
    opened, plain = open_store(str(tmp_path / "store")), activations("bvlc", [shard])
    assert opened.rows["row"].to_pylist() == list(range(100))
    for layer in opened.layers:
        for pool in opened.pools:
            expected = plain[layer, pool]
            assert np.abs(opened.array(layer, pool) - expected).max() < 1e-4 * np.abs(expected).max()
