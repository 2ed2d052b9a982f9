"""Shards that fall into pieces: the same part, whoever does which; failing and rerunning stay by shard."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import TESTS, TINY_CLASSES, TINY_FLAGS, encode, random_picture
from test_scan_and_gather import tiny

from exemplar_ray.data import pieces
from exemplar_ray.data.shard import pieces_to_share
from exemplar_ray.data.shards import discover, imagenet_schema, inspect, open_shard
from exemplar_ray.data.subset import packed
from exemplar_ray.errors import ShardError
from exemplar_ray.executor.sharing import Sharing
from exemplar_ray.exemplars import parts
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.scan import join, scan_piece, scan_shard
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.topk import NEAR_ZERO
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.runs.run_folder import RunFolder

GROUP = 50
# Pictures that are there many times take no time to encode.
PICTURES = 40


def write_shards(folder, shards, rows, broken=()):
    """Write shards of many row groups; `broken` are rows of the first that are no images."""
    folder.mkdir()
    pictures = [encode(random_picture(seed)) for seed in range(PICTURES)]
    paths = []
    for shard in range(shards):
        data = [pictures[(row + shard) * 7 % PICTURES] for row in range(rows)]
        for row in broken if shard == 0 else ():
            data[row] = b"broken"
        images = [{"bytes": one, "path": f"{row}.JPEG"} for row, one in enumerate(data)]
        paths.append(folder / f"train-{shard:05}-of-{shards:05}.parquet")
        table = pa.table([images, [row % 3 for row in range(rows)]], schema=imagenet_schema(TINY_CLASSES))
        pq.write_table(table, paths[-1], row_group_size=GROUP, write_page_checksum=True, use_dictionary=False)
    return paths


def listed(path):
    return inspect(discover([str(path)]))[0][0]


# One shard ---------------------------------------------------------------------------------

SPECS = {
    "every answer": ("trained", {"sample": ("top", "bottom", "random"), "class_top_k": 2, "distinct": True}),
    # Channels that a piece's strongest images leave at 0, but not the shard's, and channels that most leave at 0.
    "screened": ("hardly_firing", {"precision": "bfloat16", "decode": "fast", "top_k": 6, "margin": 4}),
    "not finite": ("dividing", {"layer": ("conv1",), "statistic": ("mean",)}),
}


@pytest.fixture
def pieces_of_55_rows(monkeypatch):
    monkeypatch.setattr(pieces, "ROWS_A_PIECE", 55)


@pytest.fixture(autouse=True)
def threads_of_a_worker():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SPECS)
def test_a_shard_in_pieces_has_the_part_of_one_go_byte_for_byte(tmp_path, pieces_of_55_rows, monkeypatch, name):
    factory, changes = SPECS[name]
    spec, _ = tiny(factory, **changes)
    trunk = trunk_of(spec.scan_trunk, "cpu")
    # All of the second piece is broken, and a row of the last.
    shard = listed(write_shards(tmp_path / "d", 1, 230, broken=[*range(100, 150), 210])[0])
    settings = ScanSettings(spec, batch_size=4, threads=1, max_skipped=51, sample_rate=0.5)
    assert shard.pieces == 4
    whole = scan_shard(trunk, settings, shard, 5)
    joined = join((scan_piece(trunk, settings, shard, 5, piece) for piece in range(4)), settings, shard)
    files = parts.to_files(whole.part, spec)
    assert parts.to_files(joined.part, spec) == files
    assert (joined.read, joined.not_finite) == (whole.read, whole.not_finite)
    assert len(whole.read.contents) == 5
    assert bool(whole.not_finite) == (name == "not finite")
    assert (NEAR_ZERO in whole.part.scores.ranking) == (name == "screened")
    # A shard that nobody can divide: candidates and counts are the same, sums but for their last bits.
    monkeypatch.setattr(pieces, "ROWS_A_PIECE", 10_000)
    alone = scan_shard(trunk, settings, shard, 5)
    assert alone.not_finite == whole.not_finite
    of_one = parts.to_files(alone.part, spec)
    exact = ["parquet", "histogram.parquet", "spectrum.parquet", *(["sampled.parquet"] if spec.drawn_samples else [])]
    assert {one: of_one[one] for one in exact} == {one: files[one] for one in exact}
    for mine, other in zip(alone.part.moments, whole.part.moments, strict=True):
        np.testing.assert_allclose(mine.deviations, other.deviations, rtol=1e-12)


def test_a_shard_in_pieces_is_refused_as_one_in_one_go_is(tmp_path, pieces_of_55_rows):
    spec, trunk = tiny()
    path = write_shards(tmp_path / "d", 1, 130, broken=[3, 120])[0]
    shard = listed(path)
    settings = ScanSettings(spec, batch_size=4, threads=2, max_skipped=1)
    scanned = [scan_piece(trunk, settings, shard, 0, piece) for piece in range(2)]
    with pytest.raises(ShardError) as of_pieces:
        join(scanned, settings, shard)
    with pytest.raises(ShardError) as in_one_go:
        scan_shard(trunk, settings, shard, 0)
    assert str(of_pieces.value) == str(in_one_go.value)
    assert "2 undecodable images, max_skipped is 1 (row 3: " in str(in_one_go.value)
    # Another file comes in its place, when one piece has been read: as many rows, other labels.
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", pa.array([1] * 130)), path, row_group_size=GROUP)
    settings = ScanSettings(spec, batch_size=4, threads=2, max_skipped=2)
    with pytest.raises(ShardError, match="changed while it was read"):
        join([scanned[0], scan_piece(trunk, settings, shard, 0, 1)], settings, shard)
    pq.write_table(table, path, row_group_size=130)
    with pytest.raises(ShardError, match="its row groups are others than those that were listed"):
        scan_piece(trunk, settings, shard, 0, 1)


def test_of_few_rows_that_are_wanted_there_is_one_piece(tmp_path, pieces_of_55_rows):
    shard = listed(write_shards(tmp_path / "d", 1, 200)[0])
    many, few = (replace(shard, chosen=packed(np.arange(0, 200, step), 200)) for step in (2, 10))
    assert [pieces_to_share(one) for one in (shard, many, few)] == [3, 3, 1]
    for one in (shard, many):
        read = []
        for piece in range(3):
            with open_shard(one, piece) as reader:
                rows = [image.row for image in reader.images()]
                assert reader.rows == len(rows)
                read += rows
        with open_shard(one) as reader:
            assert read == [image.row for image in reader.images()] == one.chosen_rows.tolist()
    with open_shard(few) as reader:
        assert reader.cuts == ()


# A run -------------------------------------------------------------------------------------

# Long enough for two pieces of a worker's own size.
ROWS = 2_150


def records(out):
    return [json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))]


def parts_are_those_of_one_go(out):
    """Whether the parts of a run are what a scan in this process gives, each in one go."""
    plan = Plan.read(RunFolder(str(out)))
    trunk = trunk_of(plan.spec.scan_trunk, "cpu")
    settings = ScanSettings(plan.spec, batch_size=8, threads=1, max_skipped=10)
    for position, shard in enumerate(plan.shards):
        scanned = scan_shard(trunk, settings, shard, position)
        if records(out)[position]["contents"] != scanned.read.contents:
            return False
        files = parts.to_files(scanned.part, plan.spec)
        for ending, content in files.items():
            if content != (out / "parts" / f"{position:06d}.{ending}").read_bytes():
                return False
    return True


# Notes the batches that it was given; the first worker that has been given so many is killed.
DYING = """
import importlib.util, os, pathlib, signal

spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
FOLDER = pathlib.Path({folder!r})


class Dying(tiny.TinyNetwork):
    given = 0

    def forward(self, x):
        if len(x) == 4:
            with open(FOLDER / "batches", "a") as file:
                file.write(f"{{os.getpid()}}\\n")
            Dying.given += 1
            if Dying.given == {batches} and not (FOLDER / "dead").exists():
                (FOLDER / "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def trained():
    network = Dying()
    network.load_state_dict(tiny.trained().state_dict())
    return network
"""


def test_a_lost_worker_costs_the_piece_that_it_had_and_the_rest_is_shared(cli, tmp_path, ray_cluster):
    write_shards(tmp_path / "data", 2, ROWS)
    network = tmp_path / "dying.py"
    # Each worker has the second of its pieces by then.
    network.write_text(DYING.format(tiny=str(TESTS / "tiny_network.py"), folder=str(tmp_path), batches=440))
    flags = [*TINY_FLAGS, "--model", f"{network}:trained"]
    status, text = cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags)
    assert status == 0, text
    lost = [line for line in text.splitlines() if "attempt 1 failed" in line]
    assert len(lost) == 1, text
    assert "(piece " in lost[0], text
    assert "scan 2/2" in text
    assert "scan 3/" not in text
    a_piece = -(-(ROWS // 2 + GROUP) // 4)
    batches = len((tmp_path / "batches").read_text().splitlines())
    assert 4 * ROWS / 2 / 4 < batches < 5 * a_piece
    assert [len(record["pieces"]) for record in records(tmp_path / "run")] == [2, 2]
    assert [(r["rows"], r["scored"]) for r in records(tmp_path / "run")] == [(ROWS, ROWS)] * 2
    assert parts_are_those_of_one_go(tmp_path / "run")


@ray.remote(num_cpus=0)
class Lost:
    """Who has what Ray cannot find any more once it is gone."""

    def put(self):
        return [ray.put(np.ones(100_000))]


def ask_until_it_is_gone(owner):
    """It may answer once more after it was killed."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ray.get(owner.put.remote())
        time.sleep(0.1)


def gone():
    """Return what Ray cannot find any more."""
    owner = Lost.remote()
    [lost] = ray.get(owner.put.remote())
    ray.kill(owner)
    with pytest.raises(ray.exceptions.RayActorError):
        ask_until_it_is_gone(owner)
    # Workers hear of it a little later.
    time.sleep(1)
    return lost


def lose_what_pieces_gave(monkeypatch):
    """Have what the pieces of the first shard gave be gone when they are to be put together, as with a lost machine."""
    lost = [gone()]
    next_join = Sharing._next_join

    def losing(self):
        order = next_join(self)
        return order and replace(order, left=[lost.pop()] if lost else order.left)

    monkeypatch.setattr(Sharing, "_next_join", losing)


def test_a_shard_of_which_a_piece_fails_has_one_reason_and_is_done_by_the_rerun(
    cli, tmp_path, ray_cluster, monkeypatch
):
    paths = write_shards(tmp_path / "data", 2, ROWS, broken=[10, 2000])
    whole = paths[1].read_bytes()
    damaged = bytearray(whole)
    for group in (1, 40):
        damaged[pq.read_metadata(paths[1]).row_group(group).column(0).data_page_offset + 50_000] ^= 255
    paths[1].write_bytes(damaged)
    command = ["run", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY_FLAGS]
    status, text = cli(*command, "--max-skipped", "1")
    assert status == 1, text
    reasons = [json.loads(path.read_text())["reason"] for path in sorted((tmp_path / "run" / "failed").iterdir())]
    assert len(reasons) == 2, text
    assert "2 undecodable images, max_skipped is 1 (row 10: " in reasons[0]
    assert "is damaged: a page of row group " in reasons[1]
    assert text.count("FAILED train-") == 2, text
    assert records(tmp_path / "run") == []
    Path(paths[1]).write_bytes(whole)
    lose_what_pieces_gave(monkeypatch)
    status, text = cli(*command, "--max-skipped", "2")
    assert status == 0, text
    assert text.count("(its 2 pieces together): attempt 1 failed") == text.count("attempt 1 failed") == 1, text
    assert [record["skipped"] for record in records(tmp_path / "run")] == [2, 0]
    assert [one["row"] for one in records(tmp_path / "run")[0]["skipped_images"]] == [10, 2000]
    assert not list((tmp_path / "run" / "failed").iterdir())
    assert parts_are_those_of_one_go(tmp_path / "run")
