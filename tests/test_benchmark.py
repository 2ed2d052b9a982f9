"""What the benchmark's figures rest on: the right images, honest ratios. The benchmark itself is run by hand."""

import sys

import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, write_tiny_data

sys.path.insert(0, str(PROJECT / "jobs"))

from benchmarking.data import copies_of, first_images, first_shards, row_groups, shards_of_rows
from benchmarking.limits import bound
from benchmarking.measuring import Rate, ratios, spread


@pytest.fixture
def shards(tmp_path):
    return [str(path) for path in write_tiny_data(tmp_path / "data", shards=3, rows=10)]


def stored(shards):
    return [image["bytes"] for shard in shards for image in pq.read_table(shard)["image"].to_pylist()]


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


def test_ratios_are_of_the_same_repetition():
    assert ratios([10, 30], [5, 10]) == [2, 3]
    assert spread([2, 3, 7]) == "3.0 (2.0-7.0)"
    assert Rate(100, 4).per_second == 25
