"""What a run would take: measured on a few images, and nothing written."""

import re

import pytest
from conftest import TINY_FLAGS, write_tiny_data


def test_a_plan_says_what_how_long_and_how_much_and_writes_nothing(cli, tiny_data, tmp_path, ray_cluster):
    before = sorted(tmp_path.rglob("*"))
    status, text = cli("plan", "--data", tiny_data, *TINY_FLAGS, "--price", "3.5", "--tasks", "1", "8", "64")
    assert status == 0, text
    assert "8 shards, 80 images; 2 tasks at once, 1 CPU and batches of 4 each" in text
    each, together = (float(re.search(f"{what}: ([0-9.]+) images/s", text)[1]) for what in ("a task", "all together"))
    assert together == pytest.approx(2 * each, rel=0.02)
    assert "10 images each" in text
    assert re.search(r"the scan takes about \d+ s", text)
    assert re.search(r"; at 3.5 an hour for 2 tasks: 0\.\d\d", text)
    assert re.search(r"decoding alone, [0-9.]+ ms: (decoding|the network) limits it", text)
    eight, many = (float(re.search(f"{tasks} tasks: ([0-9.]+) images/s, about", text)[1]) for tasks in (8, 64))
    assert (eight, many) == (pytest.approx(8 * each, rel=0.02), pytest.approx(64 * each, rel=0.02))
    # 12 channels with 3 exemplars and a margin: more candidates than images. One row group a shard, without GPUs.
    assert re.search(r"then 80 images are gathered at most, 0 MB to read and about 0 s for 2 CPUs", text)
    # Files so small come with their footers: those are read by the driver, a scan and a gather, and rows by the scan.
    assert "the storage gets about 32 requests" in text
    assert "the Hugging Face Hub" not in text
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_planned_is_one_line(cli, tmp_path, ray_cluster):
    [path] = write_tiny_data(tmp_path / "data", shards=1)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    for flags, message in (
        (["--data", broken, *TINY_FLAGS], "no shard can be read, or all are empty"),
        (["--data", path, *TINY_FLAGS, "--layer", "mixd"], "unknown layer 'mixd'"),
        (["--data", path, *TINY_FLAGS, "--price", "-1"], "price is a number from 0"),
        (["--data", path, *TINY_FLAGS, "--tasks", "0"], "tasks is a whole number from 1"),
        ([*TINY_FLAGS], "--data is missing"),
    ):
        status, text = cli("plan", *flags)
        assert (status, text.count("\n"), message in text) == (2, 1, True), text
