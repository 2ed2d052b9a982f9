"""What the benchmark's figures rest on: the right images, honest ratios. The benchmark itself is run by hand."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, TINY_NETWORK, write_tiny_data
from PIL import Image
from tiny_network import trained

sys.path.insert(0, str(PROJECT / "jobs"))

from benchmark import MODES
from benchmarking import stages
from benchmarking.data import copies_of, first_images, first_shards, row_groups, shards_of_rows
from benchmarking.limits import BATCH, bound, spec_of
from benchmarking.measuring import Rate, ratios, spread

from exemplar_ray.network.loading import trunk_of


@pytest.fixture
def shards(tmp_path):
    return [str(path) for path in write_tiny_data(tmp_path / "data", shards=3, rows=10)]


def stored(shards):
    return [image["bytes"] for shard in shards for image in pq.read_table(shard)["image"].to_pylist()]


def test_every_mode_is_there():
    assert all(callable(getattr(importlib.import_module(module), name)) for module, name in MODES.values())


def test_the_first_images_are_the_first(shards):
    everything = stored(shards)
    for limit in (1, 10, 17, 30, 99):
        assert first_images(shards, limit) == everything[:limit]
    assert first_shards(shards, 11) == shards[:2]
    assert [(group.first, group.rows) for group in row_groups(shards, 17)] == [(0, 10), (10, 7)]


def test_copies_hold_the_same_images(shards, tmp_path):
    folders = copies_of(shards, tmp_path / "copies", 3)
    assert len(folders) == 3
    for folder in folders:
        assert stored(sorted(str(path) for path in (tmp_path / "copies" / folder).glob("*.parquet"))) == stored(shards)


def test_shards_of_another_size_go_through_the_images_over_and_over(shards, tmp_path):
    files = shards_of_rows(shards, tmp_path / "large", rows=25, count=3)
    assert [pq.read_metadata(file).num_rows for file in files] == [25, 25, 25]
    # A shard's last row group is cut; the next shard begins with the group after it.
    assert stored(files) == stored(shards)[:25] * 3


def test_what_is_done_in_turns_is_slower_than_either():
    assert bound(100, 100) == 50
    assert bound(1e12, 40) == pytest.approx(40)


def test_finding_out_what_a_network_is_leaves_torchs_threads_as_they_are():
    """The limits are of one thread a core, and find out what they run after they have said so."""
    before = torch.get_num_threads()
    other = before + 1
    torch.set_num_threads(other)
    try:
        spec_of.__wrapped__("float32")
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)


def test_every_stage_of_a_scan_is_timed(shards):
    spec = spec_of("float32")
    taken = stages._time_stages(shards, BATCH, spec, trunk_of(spec.scan_trunk, device="cpu"))
    assert taken.keys() == stages.STAGES.keys()
    assert [row.data for row in stages._read(shards, 17)] == stored(shards)[:17]
    # Cropping is what decoding and cropping take together, less decoding: of tiny images next to nothing.
    assert min(taken[stage] for stage in stages.STAGES if stage != "crop") > 0


def test_ratios_are_of_the_same_repetition():
    assert ratios([10, 30], [5, 10]) == [2, 3]
    assert spread([2, 3, 7]) == "3.0 (2.0-7.0)"
    assert Rate(100, 4).per_second == 25


def test_pictures_are_made_beside_lucents_and_judged_alike(ray_head, tmp_path):
    figures = benchmarked("visualize", tmp_path, ray_head, "--lucent-steps", "2")["compared"]
    assert len(figures) == 2
    lucent, own = figures.values()
    assert lucent["/ lucent"] == [1]
    assert own["/ lucent"] == [own["pictures/h"][0] / lucent["pictures/h"][0]]
    assert 0 < own["from start to end"][0] < own["pictures/h"][0]
    network, seen = trained(), []
    network.wide.register_forward_hook(lambda _module, _inputs, output: seen.append(float(output[0, 1].mean())))
    # Lucent's as the network saw it while it was made.
    for name in ("lucent-224-1.png", "job-32-1.png"):
        pixels = np.array(Image.open(tmp_path / name))
        with torch.no_grad():
            network(torch.tensor(pixels[None]).permute(0, 3, 1, 2).float() - 117)
    assert [*lucent["reached"], *own["reached"]] == pytest.approx(seen, rel=1e-4)


def test_a_gpus_pictures_can_be_tried_out_without_one(ray_head, tmp_path):
    found = benchmarked("visualize-gpu", tmp_path, ray_head, "--device", "cpu")
    assert found["pictures"] == 1
    assert len(found["measured"]) == 1
    assert min(found["measured"][0].values()) > 0


PREPARED = '{"resize": 36, "crop": 32, "mean": [117, 117, 117]}'


def benchmarked(mode, out, ray_head, *flags):
    """Run the script on the tiny network; return what it writes."""
    command = [sys.executable, str(PROJECT / "jobs" / "benchmark.py"), mode, "--model", TINY_NETWORK]
    command += ["--layer", "mixed", "--channels", "1", "--preprocess", PREPARED, "--sizes", "32", "--steps", "2"]
    command += ["--repeats", "1", "--cores", "1", "--out", str(out), *flags]
    finished = subprocess.run(
        command, env={**os.environ, "RAY_ADDRESS": ray_head["address"]}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads((out / f"{mode.replace('-', '_')}.json").read_text())
