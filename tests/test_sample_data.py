"""The embedded data set: there, readable, and the same to the byte."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest
from PIL import features

from exemplar_ray.data.decode import decode
from exemplar_ray.data.sample_data import write_sample_data

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

# With the locked versions.
SHA256 = "68332cc94f5d2de5e7487461834f9d4bfd742a0590e1aef9370ac40e39ee97cd"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    paths, images = write_sample_data(str(folder / "data"))
    return paths, images


def digest(paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_it_is_the_same_to_the_byte(sample, tmp_path):
    paths, _ = sample
    again, _ = write_sample_data(str(tmp_path / "again"))
    assert digest(again) == digest(paths)
    assert digest(paths) == SHA256, f"made with libjpeg-turbo {features.version('libjpeg_turbo')}"


def test_it_has_1200_images_of_two_kinds_in_6_shards(sample):
    paths, images = sample
    assert len(paths) == 6
    assert images >= 1200
    kinds = {"photograph": 0, "stimulus": 0}
    pictures = set()
    for path in paths:
        table = pq.read_table(path)
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        in_shard = set()
        for row in table.to_pylist():
            kind = names[row["label"]].split(":")[0]
            assert row["image"]["path"].startswith(kind)
            kinds[kind] += 1
            in_shard.add(kind)
            pictures.add(row["image"]["bytes"])
            assert min(decode(row["image"]["bytes"]).size) >= 60
        assert in_shard == set(kinds)
    assert sum(kinds.values()) == images == len(pictures)  # no picture stands twice
    assert min(kinds.values()) >= 500
