"""Where nearly all images are exemplars, each is computed exactly, once: the scan's numbers are gather's."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode, random_picture
from test_copies import forward_passes
from test_large_shards import gone
from test_scan_and_gather import shard_of, tiny
from test_spec import resolved

from exemplar_ray.cli import main
from exemplar_ray.data.shard import Shard
from exemplar_ray.executor.resources import Demand, Resources
from exemplar_ray.exemplars import answer
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gathered import OfShard, ToGather
from exemplar_ray.exemplars.left_answers import LeftAnswers
from exemplar_ray.exemplars.scan import scan_shard
from exemplar_ray.exemplars.scan_job import scan_settings
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
