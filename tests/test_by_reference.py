"""Where nearly all images are exemplars, each is computed exactly, once: the scan's numbers are gather's."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from conftest import TINY_FLAGS, encode, random_picture
from test_copies import forward_passes
from test_large_shards import gone
from test_scan_and_gather import shard_of, tiny
from test_spec import resolved

from exemplar_ray.cli import main
from exemplar_ray.data import pieces
from exemplar_ray.data.shard import Shard, small_pieces
from exemplar_ray.data.shards import discover, inspect
from exemplar_ray.data.subset import packed
from exemplar_ray.errors import ShardError
from exemplar_ray.executor.resources import Demand, Resources
from exemplar_ray.exemplars import answer, parts
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gathered import OfShard, ToGather
from exemplar_ray.exemplars.left_answers import LeftAnswers
from exemplar_ray.exemplars.scan import join, scan_piece, scan_shard
from exemplar_ray.exemplars.scan_job import pieces_of, scan_settings
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.tasks import gather
from exemplar_ray.network.layers import Layer

SETTINGS = {"batch_size": 1, "threads": 1}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_scan_leaves_is_what_gather_computes(tmp_path, monkeypatch, precision):
    spec, trunk = tiny("hardly_firing", precision=precision, decode="fast", layer=("classifier", "mixed"))
    shard = shard_of(tmp_path / "data", [(f"{i}.jpg", encode(random_picture(i, 400, 300), "JPEG")) for i in range(6)])
    scanned = scan_shard(trunk, ScanSettings(spec.unscreened(), **SETTINGS, by_reference=True), shard, 0)
    assert len(scanned.answers) == 6
    asked = forward_passes(trunk, monkeypatch)
    scores = scanned.part.scores
    [with_them], _ = gather(spec, ToGather([OfShard(shard, scores)], leave=False), iter([None, scanned.answers]))
    assert asked == []
    without = gather_shard(trunk, spec, shard, scores)
    assert len(asked) == 6
    assert with_them.images.equals(without.images)
    assert with_them.maps.equals(without.maps)
    assert with_them.exact.activation.tolist() == without.exact.activation.tolist() == (scores.activation + 0).tolist()


# Small pieces ------------------------------------------------------------------------------


def folder_of(folder, images):
    folder.mkdir()
    for name, content in images:
        (folder / name).write_bytes(content)
    return inspect(discover([str(folder)]))[0][0]


def in_small_pieces(trunk, settings, shard, numbers):
    return [scan_piece(trunk, settings, shard, 5, number) for number in numbers]


@pytest.mark.parametrize("made", [shard_of, folder_of])
@pytest.mark.parametrize("chosen", [None, (0, 1, 4, 5, 6, 9)])
def test_small_pieces_come_to_what_one_worker_does_and_leave_what_it_leaves(tmp_path, monkeypatch, made, chosen):
    monkeypatch.setattr(pieces, "ROWS_A_SMALL_PIECE", 3)
    spec, trunk = tiny("hardly_firing", sample=("top", "bottom", "random"), class_top_k=2)
    # The first and the last are the same; one is broken.
    contents = [encode(random_picture(seed)) for seed in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0)]
    contents[4] = b"broken"
    shard = made(tmp_path / "data", [(f"{row}.png", content) for row, content in enumerate(contents)])
    shard = replace(shard, chosen=chosen and packed(np.array(chosen), 10))
    assert small_pieces(shard) == [3, 6]
    settings = ScanSettings(spec, **SETTINGS, max_skipped=1, sample_rate=1.0, by_reference=True)
    whole = scan_shard(trunk, settings, shard, 5)
    joined = join(in_small_pieces(trunk, settings, shard, range(3)), settings, shard)
    assert parts.to_files(joined.part, spec) == parts.to_files(whole.part, spec)
    assert joined.read.facts() == whole.read.facts()
    assert whole.read.contents
    assert (whole.read.rows, whole.read.scored) == ((10, 9) if chosen is None else (6, 5))
    assert joined.answers.keys() == whole.answers.keys()
    assert len(joined.answers) == (8 if chosen is None else 4)
    for key, answer_to in joined.answers.items():
        for layer, maps in whole.answers[key].maps.items():
            np.testing.assert_array_equal(answer_to.maps[layer], maps)


@pytest.mark.parametrize("made", [shard_of, folder_of])
def test_small_pieces_of_a_shard_that_changed_meanwhile_are_refused(tmp_path, monkeypatch, made):
    monkeypatch.setattr(pieces, "ROWS_A_SMALL_PIECE", 2)
    spec, trunk = tiny()
    images = [(f"{row}.bmp", encode(random_picture(row), "BMP")) for row in range(4)]
    shard = made(tmp_path / "data", images)
    settings = ScanSettings(spec, **SETTINGS, by_reference=True)
    [first] = in_small_pieces(trunk, settings, shard, [0])
    # As large as before; and what changed is not in the piece that is read then.
    images[0] = ("0.bmp", encode(random_picture(9), "BMP"))
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    (tmp_path / "data").rmdir()
    made(tmp_path / "data", images)
    with pytest.raises(ShardError, match="changed while it was read"):
        join([first, *in_small_pieces(trunk, settings, shard, [1])], settings, shard)


def test_shards_are_shared_in_small_pieces_where_reading_them_again_costs_nothing():
    spec = resolved(layers=(Layer("mixed4a", 508, (14, 14), tuple(range(508))),))
    exactly, usual = (ScanSettings(spec, **SETTINGS, by_reference=by_reference) for by_reference in (True, False))
    shard = Shard("a.parquet", "/a.parquet", 1, 100, "x")
    assert (pieces_of(shard, exactly), pieces_of(shard, usual)) == (6, 1)
    assert pieces_of(replace(shard, rows=1000), exactly) == 16
    assert pieces_of(replace(shard, uri="memory://a.parquet"), exactly) == 1
    # What is long enough for pieces that can be read by themselves has these; of a tar nobody knows the rows.
    assert pieces_of(replace(shard, rows=4000, pieces=4), exactly) == 4
    assert pieces_of(replace(shard, rows=None, about=100), exactly) == 1
    assert pieces_of(replace(shard, chosen=packed(np.arange(0, 100, 10), 100)), exactly) == 1


# A run -------------------------------------------------------------------------------------


def cluster_of(demand=None, **resources):
    given = {"demand": demand or Demand(), "batch_size": 8, "resources": Resources(**resources)}
    return type("Cluster", (), given)()


@pytest.mark.parametrize(
    ("images", "cluster", "layer", "expected"),
    [
        (1270, cluster_of(), (14, 14), True),
        (1271, cluster_of(), (14, 14), False),
        (0, cluster_of(), (14, 14), False),
        (1000, cluster_of(), None, True),
        # More than there is room for.
        (1000, cluster_of(), (28, 28), False),
        # Whoever says how to scan has it scanned so; a GPU is no reference.
        (800, cluster_of(compile="never"), (14, 14), False),
        (800, cluster_of(compile="always"), (14, 14), False),
        (800, cluster_of(batch_size=8), (14, 14), False),
        (800, cluster_of(Demand(1, 1)), (14, 14), False),
    ],
)
def test_few_images_are_scanned_by_the_reference(images, cluster, layer, expected):
    spec = resolved(layers=(Layer("mixed4a", 508, layer, tuple(range(508))),))
    settings = scan_settings(spec, [Shard("a.parquet", "/a.parquet", 1, images, "x")], cluster, 0)
    assert settings.by_reference is expected
    assert settings.batch_size == (1 if expected else 8)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for name in "ab":
        shard_of(folder / "data" / name, [(f"{i}.png", encode(random_picture(i + 8 * ord(name)))) for i in range(8)])
    return folder


@pytest.fixture(scope="module")
def usual(few, ray_cluster):
    """A run of its images that scans in batches, and its flags."""
    flags = ["--data", few / "data" / "a", few / "data" / "b", *TINY_FLAGS, "--top-k", "8", "--sample", "bottom"]
    assert main([str(one) for one in ("run", *flags, "--out", few / "usual", "--compile", "never")]) == 0
    return few / "usual", flags


def records(run):
    return [json.loads(path.read_text()) for path in sorted((run / "parts").glob("*.json"))]


def assert_same_answer(run, usual):
    for name in ("exemplars", "images"):
        assert pq.read_table(run / f"{name}.parquet").equals(pq.read_table(usual / f"{name}.parquet")), name
    mine, other = (pq.read_table(one / "channels.parquet").to_pandas() for one in (run, usual))
    for column in ("mean", "variance", "min", "max"):
        np.testing.assert_allclose(mine[column], other[column], rtol=1e-4, atol=1e-6)


SCREENING = ["--precision", "bfloat16", "--decode", "fast"]


@pytest.mark.parametrize("screening", [[], SCREENING])
def test_a_small_run_answers_as_any_other_and_so_does_its_merge(usual, cli, tmp_path, screening):
    other, flags = usual
    status, said = cli("run", *flags, *screening, "--out", tmp_path / "run")
    assert status == 0, said
    assert "so few images are nearly all exemplars: each is computed exactly, once" in said
    assert [record["by_reference"] for record in records(tmp_path / "run")] == [True, True]
    assert not any("by_reference" in record for record in records(other))
    assert_same_answer(tmp_path / "run", other)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["largest_error"], summary["unsettled"]) == (0, [])
    # Of what the scan had left nothing is there any more.
    before = (tmp_path / "run" / "exemplars.parquet").read_bytes()
    assert cli("merge", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "exemplars.parquet").read_bytes() == before


def test_shards_that_were_screened_and_shards_that_were_not_come_to_the_same(usual, cli, tmp_path):
    other, flags = usual
    assert cli("run", *flags, *SCREENING, "--compile", "never", "--out", tmp_path / "run")[0] == 0
    for file in (tmp_path / "run" / "parts").glob("000001*"):
        file.unlink()
    status, said = cli("run", *flags, *SCREENING, "--out", tmp_path / "run")
    assert status == 0, said
    assert [record.get("by_reference") for record in records(tmp_path / "run")] == [None, True]
    for name in ("exemplars", "images"):
        assert pq.read_table(tmp_path / "run" / f"{name}.parquet").equals(pq.read_table(other / f"{name}.parquet"))


def test_what_the_scan_left_may_be_lost(usual, cli, tmp_path, monkeypatch):
    """With the machine that had it."""
    other, flags = usual
    gather, given = answer.gather_candidates, []

    def without_the_first(plan, context, images, left, wanted):
        given.append(len(context.left))
        return gather(plan, context, images, LeftAnswers(plan.spec, {**context.left, 0: gone()}), wanted)

    monkeypatch.setattr(answer, "gather_candidates", without_the_first)
    status, said = cli("run", *flags, "--out", tmp_path / "run")
    assert status == 0, said
    assert given == [2]
    assert said.count("tried again") == 1
    assert_same_answer(tmp_path / "run", other)


def test_one_shard_is_shared_by_all_workers(ray_cluster, cli, tmp_path, monkeypatch):
    shard_of(tmp_path / "data", [(f"{i}.png", encode(random_picture(i))) for i in range(40)])
    flags = ["--data", tmp_path / "data", *TINY_FLAGS, "--top-k", "40", "--sample", "bottom"]
    assert cli("run", *flags, "--out", tmp_path / "usual", "--compile", "never")[0] == 0
    gather, left = answer.gather_candidates, []

    def noting(plan, context, *more):
        left.append({position: len(ray.get(of_shard)) for position, of_shard in context.left.items()})
        return gather(plan, context, *more)

    monkeypatch.setattr(answer, "gather_candidates", noting)
    status, said = cli("run", *flags, "--out", tmp_path / "run")
    assert status == 0, said
    [record] = records(tmp_path / "run")
    assert (record["by_reference"], len(record["pieces"]), left) == (True, 2, [{0: 40}])
    assert_same_answer(tmp_path / "run", tmp_path / "usual")
