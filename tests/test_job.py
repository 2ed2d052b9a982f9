"""The command line from end to end, on a real Ray cluster, with a tiny network and data set."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_network
import torch
from awkward_images import broken_images
from conftest import (
    TINY_CLASSES,
    TINY_FLAGS,
    TINY_NETWORK,
    TINY_ROWS,
    TINY_SHARDS,
    encode,
    random_picture,
    write_tiny_data,
)

from exemplar_ray.cli import main
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run_arguments(data, out, *more):
    return ["run", "--data", data, "--out", out, *TINY_FLAGS, *more]


def records(out):
    return {path.name: path.read_text() for path in sorted((out / "parts").glob("*.json"))}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory, ray_cluster):
    """A finished run over the tiny data: (data, run folder), both to be left alone."""
    folder = tmp_path_factory.mktemp("once")
    write_tiny_data(folder / "data")
    assert main([str(argument) for argument in run_arguments(folder / "data", folder / "run")]) == 0
    return folder / "data", folder / "run"


@pytest.fixture
def finished(run_once, tmp_path):
    """The same, with a copy of the run folder: (data, to be left alone; run folder)."""
    data, run = run_once
    return data, Path(shutil.copytree(run, tmp_path / "run"))


def test_a_run_gives_what_sorting_all_images_gives(finished):
    data, out = finished
    torch.set_num_threads(1)
    network = tiny_network.trained().eval()
    preprocess = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
    acts = {}
    network.mixed.register_forward_hook(lambda m, i, o: acts.update(mixed=o))
    scored = []
    for path in sorted(data.glob("*.parquet")):
        for row, entry in enumerate(pq.read_table(path).to_pylist()):
            crop = torch.from_numpy(decode_and_crop(entry["image"]["bytes"], preprocess).copy())
            with torch.inference_mode():
                network(crop.permute(2, 0, 1)[None].float() - 117)
            scored.append((acts["mixed"].mean(dim=(2, 3))[0].numpy(), path.name, row, entry))
    rows = pq.read_table(out / "exemplars.parquet").to_pylist()
    assert len(rows) == 12 * 3
    for channel in range(12):
        best = sorted(scored, key=lambda s: (-s[0][channel], s[1], s[2]))[:3]
        for rank, (activations, shard, row, entry) in enumerate(best, start=1):
            found = rows[channel * 3 + rank - 1]
            assert (found["layer"], found["statistic"], found["channel"], found["rank"]) == (
                "mixed",
                "mean",
                channel,
                rank,
            )
            assert found["activation"] == pytest.approx(activations[channel], rel=1e-5)
            assert (found["shard"], found["row"]) == (shard, row)
            assert found["image"]["bytes"] == entry["image"]["bytes"]
            assert found["image_path"] == found["image"]["path"] == entry["image"]["path"]
            assert (found["label"], found["class_name"]) == (entry["label"], TINY_CLASSES[entry["label"]])
            assert found["synset_id"] == entry["image"]["path"][:9]


def test_the_table_has_the_columns_of_the_contract_and_opens_in_datasets(finished):
    _, out = finished
    schema = pq.read_schema(out / "exemplars.parquet")
    assert [(field.name, field.type) for field in schema] == [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("channel", pa.int32()),
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("image_path", pa.string()),
        ("label", pa.int64()),
        ("synset_id", pa.string()),
        ("class_name", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("percentile", pa.float64()),
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_map", pa.list_(pa.float16())),
        ("map_height", pa.int32()),
        ("map_width", pa.int32()),
        ("view_box", pa.list_(pa.float32(), 4)),
        ("field_box", pa.list_(pa.float32(), 4)),
        ("sample", pa.string()),
        ("duplicate_of", pa.int32()),
        ("unit_box", pa.list_(pa.float32(), 4)),
        ("synset_name", pa.string()),
    ]
    stamp = json.loads(schema.metadata[b"exemplar_ray"])
    assert stamp["fingerprint"] == json.loads((out / "run.json").read_text())["fingerprint"]
    assert (stamp["partial"], stamp["trained"], stamp["identity"]["top_k"]) == (None, True, 3)

    import datasets

    data = datasets.load_dataset(
        "parquet", data_files=str(out / "exemplars.parquet"), split="train", cache_dir=str(out.parent / "cache")
    )
    assert data.features["label"] == datasets.ClassLabel(names=TINY_CLASSES)
    assert data[0]["image"].size == (48, 40)
    assert data.features["label"].int2str(data[0]["label"]) == data[0]["class_name"]
    assert len(data[0]["activation_map"]) == 16 * 16
    assert len(data[0]["field_box"]) == 4


def test_summary_and_records_account_for_every_row(finished, cli):
    _, out = finished
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["scored"], summary["skipped"]) == (80, 80, 0)
    assert [shard["rows"] for shard in summary["shards"]] == [TINY_ROWS] * TINY_SHARDS
    assert summary["complete"]
    assert summary["unsettled"] == []
    cost = summary["this_invocation"]
    assert cost["images_scanned"] == 80
    assert cost["images_per_second"] == pytest.approx(80 / cost["scan_seconds"])
    for text in records(out).values():
        record = json.loads(text)
        assert record["rows"] == record["scored"] + record["skipped"] == TINY_ROWS
        assert {"fingerprint", "shard", "seconds", "host", "files"} <= record.keys()
    status, text = cli("status", out)
    assert status == 0
    assert "8 in all, 8 done, 0 failed, 0 pending" in text
    assert "80 read = 80 scored + 0 skipped" in text


def test_a_finished_run_has_nothing_to_do(finished, cli):
    data, out = finished
    before = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    status, text = cli(*run_arguments(data, out))
    assert status == 0
    assert "nothing to do" in text
    assert {path.name: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


def test_resources_change_the_speed_and_not_the_result(finished, tmp_path, cli):
    data, out = finished
    for more in (["--batch-size", "3"], ["--batch-size", "64", "--cpus-per-task", "2"]):
        again = tmp_path / f"run{more[1]}"
        assert cli(*run_arguments(data, again, *more))[0] == 0
        assert (again / "exemplars.parquet").read_bytes() == (out / "exemplars.parquet").read_bytes()


@pytest.mark.parametrize("damage", ["cut short", "flipped bytes inside", "not parquet"])
def test_a_corrupt_shard_fails_alone_and_is_rerun_alone(finished, tmp_path, cli, damage):
    clean, undisturbed = finished
    data, out = tmp_path / "damaged", tmp_path / "rerun"
    shutil.copytree(clean, data)
    victim = data / "train-00003-of-00008.parquet"
    content = victim.read_bytes()
    if damage == "cut short":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "not parquet":
        victim.write_bytes(b"<html>503</html>")
    else:
        start = pq.read_metadata(victim).row_group(0).column(0).data_page_offset
        victim.write_bytes(content[:start] + b"\xff" * 64 + content[start + 64 :])

    status, text = cli(*run_arguments(data, out, "--retries", "1"))
    assert status == 1
    assert "FAILED train-00003-of-00008.parquet" in text
    assert "to scan only these again: " in text
    assert not (out / "exemplars.parquet").exists()
    after_accident = records(out)
    assert len(after_accident) == 7
    status, text = cli("status", out)
    assert status == 1
    assert "7 done, 1 failed, 0 pending" in text
    assert "failed: train-00003-of-00008.parquet" in text

    victim.write_bytes(content)
    status, text = cli(*run_arguments(data, out))
    assert status == 0, text
    assert "scan 1/1  train-00003-of-00008.parquet" in text
    after_rerun = records(out)
    assert {name: after_rerun[name] for name in after_accident} == after_accident
    assert set(after_rerun) - set(after_accident) == {"000003.json"}
    assert not list((out / "failed").glob("*"))
    assert (out / "exemplars.parquet").read_bytes() == (undisturbed / "exemplars.parquet").read_bytes()


def test_what_is_there_can_be_merged_and_says_that_it_is_partial(tiny_data, tmp_path, cli):
    out = tmp_path / "run"
    (tiny_data / "train-00005-of-00008.parquet").write_bytes(b"broken")
    assert cli(*run_arguments(tiny_data, out, "--retries", "0"))[0] == 1
    status, text = cli("merge", out)
    assert status == 1
    assert "train-00005-of-00008.parquet" in text
    assert not (out / "exemplars.parquet").exists()
    status, text = cli("merge", out, "--allow-partial")
    assert status == 1
    assert "PARTIAL: 7 of 8 shards" in text
    stamp = json.loads(pq.read_schema(out / "exemplars.parquet").metadata[b"exemplar_ray"])
    assert stamp["partial"] == "7 of 8 shards"
    status, text = cli("status", out)
    assert status == 1
    assert "PARTIAL: 7 of 8 shards" in text


def test_the_same_data_elsewhere_gives_the_same_bytes(finished, tmp_path, cli):
    data, out = finished
    shutil.copytree(data, tmp_path / "elsewhere")
    assert cli(*run_arguments(tmp_path / "elsewhere", tmp_path / "run2"))[0] == 0
    assert (tmp_path / "run2" / "exemplars.parquet").read_bytes() == (out / "exemplars.parquet").read_bytes()


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (["--layer", "conv1"], "layer"),
        (["--top-k", "4"], "top_k"),
        (["--channels", "0-3"], "channels"),
        (["--statistic", "max"], "statistic"),
        (["--preprocess", "{resize: 40, crop: 32, mean: [117, 117, 117]}"], "preprocess"),
        (["--model", TINY_NETWORK + "_otherwise"], "weights"),
    ],
)
def test_another_run_over_the_folder_is_refused_naming_the_keys(finished, cli, more, key):
    data, out = finished
    before = (out / "exemplars.parquet").read_bytes()
    status, text = cli(*run_arguments(data, out), *more)
    assert status == 2
    assert f"{key}" in text.split("these keys differ: ")[1].split("(")[0]
    assert len(text.strip().splitlines()) == 1
    assert (out / "exemplars.parquet").read_bytes() == before


def test_other_data_over_the_folder_are_refused(finished, tmp_path, cli):
    _, out = finished
    write_tiny_data(tmp_path / "fewer", shards=3)
    write_tiny_data(tmp_path / "other", first_seed=1000)
    status, text = cli(*run_arguments(tmp_path / "fewer", out))
    assert (status, "these keys differ: data" in text) == (2, True)
    status, text = cli(*run_arguments(tmp_path / "other", out))
    assert (status, "data differs: shard train-00000-of-00008.parquet changed" in text) == (2, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer", "mixd"], "unknown layer 'mixd'; did you mean 'mixed'"),
        (["--model", "inceptionv2"], "unknown model 'inceptionv2'; did you mean 'inceptionv1'"),
        (["--statistic", "maen"], "unknown statistic 'maen'; did you mean 'mean'"),
        (["--channels", "0-12"], "channel 12 is out of range; valid channels are 0-11"),
        (["--weights", "nowhere.pth"], "weights 'nowhere.pth' cannot be read"),
        (["--weights", "random:0"], "same weights whatever the seed"),
        (["--data", "nowhere/*.parquet"], "no parquet shard, tar or image matches 'nowhere/*.parquet'"),
        (["--top-k", "0"], "top_k is a whole number from 1"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(tiny_data, tmp_path, cli, more, message):
    status, text = cli(*run_arguments(tiny_data, tmp_path / "run", *more))
    assert status == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_data_without_an_image_column_is_refused_saying_what_is_there(tmp_path, cli):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    status, text = cli(*run_arguments(tmp_path / "x.parquet", tmp_path / "run"))
    assert status == 2
    assert "has no image column" in text
    assert "text: string, label: int64" in text


def test_undecodable_images_are_counted_against_max_skipped_and_listed(tmp_path, cli):
    good = [LabelledImage(encode(random_picture(i)), f"{i}.png", 0) for i in range(6)]
    bad = [LabelledImage(data, f"{name}.jpeg", 0) for name, data in list(broken_images().items())[:3]]
    write_images([*good[:3], *bad, *good[3:]], str(tmp_path / "data"), None, 100)
    out = tmp_path / "run"
    status, text = cli(*run_arguments(tmp_path / "data", out))
    assert status == 1
    assert "3 undecodable images, max_skipped is 0 (row 3: empty image bytes" in text
    status, text = cli(*run_arguments(tmp_path / "data", out, "--max-skipped", "3"))
    assert status == 0, text
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["scored"], summary["skipped"]) == (9, 6, 3)
    assert [entry["row"] for entry in summary["skipped_images"]] == [3, 4, 5]
    _, text = cli("status", out)
    assert "9 read = 6 scored + 3 skipped" in text
    assert "skipped: train-00000-of-00001.parquet row 3: empty image bytes" in text


def test_class_labels_name_classes_and_new_ones_need_no_scan(finished, tmp_path, cli):
    data, out = finished
    before = records(out)
    (tmp_path / "labels.json").write_text(json.dumps({str(i): [f"n0000000{i}", f"class {i}"] for i in range(3)}))
    status, text = cli(*run_arguments(data, out, "--class-labels", tmp_path / "labels.json"))
    assert status == 0, text
    assert records(out) == before
    for row in pq.read_table(out / "exemplars.parquet", columns=["label", "class_name", "synset_id"]).to_pylist():
        assert row["class_name"] == f"class {row['label']}"
        assert row["synset_id"].startswith("n01440")  # the path knows better


def test_several_layers_and_statistics_in_one_pass_and_channels_of_each(tiny_data, tmp_path, cli):
    out = tmp_path / "run"
    more = ["--layer", "classifier", "mixed", "--statistic", "mean,max", "--channels", "0,4"]
    assert cli(*run_arguments(tiny_data, out), *more)[0] == 0
    table = pq.read_table(out / "exemplars.parquet", columns=["layer", "statistic", "channel", "rank"]).to_pylist()
    keys = [tuple(row.values()) for row in table]
    expected = [
        (layer, statistic, channel, rank)
        for layer in ("classifier", "mixed")
        for statistic in ("max", "mean")
        for channel in (0, 4)
        for rank in (1, 2, 3)
    ]
    assert keys == expected


def test_a_config_file_gives_the_keys_and_a_flag_wins(tiny_data, tmp_path, cli):
    config = {"data": str(tiny_data), "out": str(tmp_path / "a"), "model": TINY_NETWORK, "layer": "mixed", "top_k": 3}
    config["preprocess"] = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert cli("run", "--config", tmp_path / "run.yaml", "--out", tmp_path / "b", "--top-k", "2")[0] == 0
    assert not (tmp_path / "a").exists()
    assert json.loads((tmp_path / "b" / "run.json").read_text())["identity"]["top_k"] == 2


def test_ties_go_to_the_earlier_shard_and_row(tmp_path, cli):
    same = encode(random_picture(1))
    images = [LabelledImage(same, f"{i}.png", 0) for i in range(20)]
    write_images(images, str(tmp_path / "data"), None, 7)
    assert cli(*run_arguments(tmp_path / "data", tmp_path / "run", "--top-k", "9"))[0] == 0
    table = pq.read_table(tmp_path / "run" / "exemplars.parquet", columns=["channel", "shard", "row"]).to_pandas()
    first = [("train-00000-of-00003.parquet", row) for row in range(7)]
    first += [("train-00001-of-00003.parquet", row) for row in range(2)]
    for _, rows in table.groupby("channel"):
        assert list(zip(rows["shard"], rows["row"], strict=True)) == first
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert np.isclose(summary["largest_error"], 0)
    assert summary["unsettled"] == []


def test_a_worker_that_dies_in_a_shard_is_replaced(tiny_data, finished, tmp_path, cli):
    """Its first forward pass over a batch kills the process with SIGKILL; the second attempt goes on."""
    marker = tmp_path / "killed once"
    (tmp_path / "deadly.py").write_text(
        "import importlib.util, os, pathlib, signal\n"
        f"spec = importlib.util.spec_from_file_location('tiny', {TINY_NETWORK.removesuffix(':trained')!r})\n"
        "tiny = importlib.util.module_from_spec(spec); spec.loader.exec_module(tiny)\n"
        f"marker = pathlib.Path({str(marker)!r})\n"
        "class Deadly(tiny.TinyNetwork):\n"
        "    def forward(self, x):\n"
        "        if len(x) > 1 and not marker.exists():\n"
        "            marker.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
        "def trained():\n"
        "    network = Deadly(); network.load_state_dict(tiny.trained().state_dict()); return network\n"
    )
    arguments = run_arguments(tiny_data, tmp_path / "survived", "--model", f"{tmp_path / 'deadly.py'}:trained")
    status, text = cli(*arguments)
    assert marker.exists()
    assert status == 0, text
    columns = ["channel", "rank", "activation", "shard", "row"]
    survived = pq.read_table(tmp_path / "survived" / "exemplars.parquet", columns=columns)
    undisturbed = pq.read_table(finished[1] / "exemplars.parquet", columns=columns)
    assert survived.to_pylist() == undisturbed.to_pylist()


def test_a_worker_that_always_dies_fails_its_shards_and_not_forever(tiny_data, tmp_path, cli):
    (tmp_path / "deadly.py").write_text(
        "import os, signal, torch\n"
        "class Deadly(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.mixed = torch.nn.Identity()\n"
        "    def forward(self, x):\n"
        "        if len(x) > 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.mixed(x)\n"
    )
    data = tiny_data / "train-00000-of-00008.parquet"
    more = ["--model", f"{tmp_path / 'deadly.py'}:Deadly", "--retries", "1"]
    status, text = cli(*run_arguments(data, tmp_path / "run", *more))
    assert status == 1
    assert "FAILED train-00000-of-00008.parquet: WorkerCrashedError" in text
    record = json.loads((tmp_path / "run" / "failed" / "000000.json").read_text())
    assert record["attempts"] == 2


def test_a_run_folder_that_cannot_be_written_is_one_line(tiny_data, tmp_path, cli):
    (tmp_path / "file").write_text("not a folder")
    status, text = cli(*run_arguments(tiny_data, tmp_path / "file" / "run"))
    assert status == 2
    assert "Not a directory" in text
    assert len(text.strip().splitlines()) == 1


def test_nothing_scanned_is_nothing_to_merge(tmp_path, cli):
    write_tiny_data(tmp_path / "data", shards=1)
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"broken")
    assert cli(*run_arguments(tmp_path / "data", tmp_path / "run", "--retries", "0"))[0] == 1
    status, text = cli("merge", tmp_path / "run", "--allow-partial")
    assert (status, "nothing to merge" in text) == (2, True)


def test_a_killed_driver_is_rerun_to_the_same_bytes(finished, ray_cluster, tmp_path, cli):
    data, undisturbed = finished
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "exemplar_ray", *map(str, run_arguments(data, out))]
    driver = subprocess.Popen(
        command, env={**os.environ, "RAY_ADDRESS": ray_cluster["address"]}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert not (out / "summary.json").exists()
    done = records(out)
    assert done
    status, text = cli(*run_arguments(data, out))
    assert status == 0, text
    assert {name: records(out)[name] for name in done} == done
    for name in ("exemplars.parquet", "channels.parquet"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_run_folder_is_where_the_driver_says_whatever_the_workers_working_folder_is(
    finished, tmp_path, cli, monkeypatch
):
    data, out = finished
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, text = cli(*run_arguments(os.path.relpath(data), "here"))
    assert status == 0, text
    assert (tmp_path / "elsewhere" / "here" / "exemplars.parquet").read_bytes() == (
        out / "exemplars.parquet"
    ).read_bytes()


def test_a_models_file_and_its_weights_are_where_the_driver_says_too(finished, tmp_path, cli, monkeypatch):
    data, out = finished
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tiny_network.__file__, elsewhere / "network.py")
    torch.save(tiny_network.trained().state_dict(), elsewhere / "weights.pth")
    monkeypatch.chdir(elsewhere)
    relative = ["--model", "network.py:trained_otherwise", "--weights", "weights.pth"]
    status, text = cli(*run_arguments(data, tmp_path / "other", *relative))
    assert status == 0, text
    same, other = (pq.read_table(folder / "exemplars.parquet") for folder in (out, tmp_path / "other"))
    assert other.equals(same)


def test_two_runs_of_different_specs_at_the_same_time_do_not_disturb_each_other(finished, tmp_path, ray_cluster, cli):
    data, alone = finished
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster["address"]}
    specs = {"mean": ["--statistic", "mean"], "max": ["--statistic", "max", "--top-k", "5"]}
    together = [
        subprocess.Popen(
            [sys.executable, "-m", "exemplar_ray", *run_arguments(data, tmp_path / name, *flags)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for name, flags in specs.items()
    ]
    assert [driver.wait(300) for driver in together] == [0, 0]
    # The finished run is of the means.
    undisturbed = {"mean": alone, "max": tmp_path / "max alone"}
    assert cli(*run_arguments(data, undisturbed["max"], *specs["max"]))[0] == 0
    for name, of_one in undisturbed.items():
        expected = pq.read_table(of_one / "exemplars.parquet")
        assert pq.read_table(tmp_path / name / "exemplars.parquet").equals(expected)
        assert json.loads((tmp_path / name / "summary.json").read_text())["complete"]
