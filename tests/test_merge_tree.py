"""The merge of many shards: folds of folds are folds of everything, in memory that does not follow their number."""

import os
import threading
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
from conftest import python_without
from hypothesis import given, settings
from hypothesis import strategies as st
from many_shards import Synthetic
from rich.console import Console
from test_spec import resolved
from test_topk import data_sets, make_scores

from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.job import Context, Reduced
from exemplar_ray.executor.repair import reduced_without_wrong
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars import answer, parts
from exemplar_ray.exemplars import merge as folding
from exemplar_ray.exemplars.exemplars_job import ExemplarsJob
from exemplar_ray.exemplars.merge import fold, fold_all
from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.plan import Plan, ScannedShard
from exemplar_ray.exemplars.samples import SampledImages
from exemplar_ray.exemplars.topk import BOTTOM, OF_CLASS, TOP, concatenate, merge
from exemplar_ray.network.layers import Layer
from exemplar_ray.runs.run_folder import RunFolder

# Folds of folds ----------------------------------------------------------------------------


def part_of(values, position, spec):
    """The part of a shard, given float32 [rows, channels]; classes and priorities are made up from rows."""
    part = Part.empty(spec)
    labels, rows = np.arange(len(values)) % 3, np.arange(len(values))
    for tallies in part.tallies.values():
        tallies[0].update(values, labels)
    row, channel = np.nonzero(np.isfinite(values))
    columns = channel, values[row, channel], position, row
    both = [make_scores(*columns, ranking=ranking) for ranking in (TOP, BOTTOM)]
    of_class = make_scores(*columns, ranking=OF_CLASS, label=labels[row])
    scores = merge([concatenate([*both, of_class])], candidates_kept(spec))
    priorities = (rows * 7 + position * 5) % 11 / 11
    return Part(scores, part.tallies, SampledImages(np.full(len(values), position), rows, priorities, [values]))


def assert_same(one, other, *, exactly):
    """Hold two folds against each other; sums of floats may differ in their last bits."""
    for ours, theirs in zip((*one.scores, *one.lasts), (*other.scores, *other.lasts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = ([s.shard, s.row, s.priority, *s.activations] for s in (one.sampled, other.sampled))
    for pair in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(*pair)
    np.testing.assert_array_equal(one.shards, other.shards)
    for name, [ours] in one.tallies.items():
        for key, values in vars(ours).items():
            if exactly:
                np.testing.assert_array_equal(values, vars(other.tallies[name][0])[key])
            else:
                scale = np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max(initial=0)
                np.testing.assert_allclose(values, vars(other.tallies[name][0])[key], rtol=1e-9, atol=1e-9 * scale)


def moderate(shards):
    """Activations whose sums of squares are finite."""
    return [np.where(np.abs(values) > 1e15, np.float32(3), values) for values in shards]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), shards=data_sets(), top_k=st.integers(1, 2), margin=st.integers(0, 1))
def test_any_grouping_order_and_repetition_folds_to_the_same(data, shards, top_k, margin):
    channels = shards[0].shape[1]
    layers = (Layer("mixed4a", channels, None, tuple(range(channels))),)
    spec = resolved(layers=layers, top_k=top_k, margin=margin, samples=("top", "bottom", "random"), class_top_k=1)
    all_parts = [(p, part_of(values, p, spec)) for p, values in enumerate(moderate(shards))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "sampled_images", lambda top_k: 4)
        patch.setattr(folding, "_CANDIDATES_PER_FOLD", data.draw(st.sampled_from([1, 30, 1000])))
        everything = fold(all_parts, spec)
        assert len(everything.sampled.row) == min(4, sum(map(len, shards)))
        forest = [fold([part], spec) for part in data.draw(st.permutations(all_parts))]
        steps = []
        while len(forest) > 1:
            # Some neighbours fold, one of them twice, and what they come to stands anywhere.
            first = data.draw(st.integers(0, len(forest) - 2))
            end = data.draw(st.integers(first + 2, len(forest)))
            several = [*forest[first:end], data.draw(st.sampled_from(forest[first:end]))]
            place = data.draw(st.integers(0, len(forest) - (end - first)))
            forest[first:end] = []
            forest.insert(place, fold_all(several, spec))
            steps.append(several)
        assert_same(fold_all([*forest, *forest], spec), everything, exactly=False)
        if steps:
            assert_same(fold_all(steps[-1], spec), fold_all(list(steps[-1]), spec), exactly=True)
            assert_same(fold_all([fold_all(steps[-1], spec)], spec), forest[0], exactly=True)


def test_one_group_is_what_folding_its_parts_here_is():
    spec = resolved(layers=(Layer("mixed4a", 4, None, (0, 1, 2, 3)),), samples=("top", "random"))
    random = np.random.default_rng(0)
    in_parts = [(p, part_of(random.normal(size=(30, 4)).astype(np.float32), p, spec)) for p in range(9)]
    at_once = fold(in_parts, spec)
    assert_same(fold_all([at_once], spec), at_once, exactly=True)
    files = [parts.to_files(Part(f.scores, f.tallies, f.sampled), spec) for f in (at_once, fold_all([at_once], spec))]
    assert files[0] == files[1]


def test_a_shard_in_two_groups_is_refused_and_a_group_that_comes_again_changes_nothing():
    spec = resolved(layers=(Layer("mixed4a", 2, None, (0, 1)),))
    a, b, c = ((p, part_of(np.ones((3, 2), np.float32), p, spec)) for p in range(3))
    left, right = fold([a, b], spec), fold([b, c], spec)
    assert fold_all([left, fold([a], spec), left], spec).tallies["moments"][0].images.tolist() == [6, 6]
    with pytest.raises(ValueError, match="shard 1 is in two folds"):
        fold_all([left, right], spec)


def test_groups_are_neighbours_in_the_shard_list_whoever_is_missing():
    assert folding.groups(range(16), 16) == [list(range(16))]
    # Which shards are in a group depends on all there are, not on those that are done.
    assert folding.groups([0, 99, 100, 500], 10_000) == [[0, 99], [100], [500]]
    assert folding.groups([], 10_000) == []


def test_a_fold_takes_no_more_memory_for_more_parts(monkeypatch):
    monkeypatch.setattr(folding, "_CANDIDATES_PER_FOLD", 20_000)
    spec = resolved(layers=(Layer("mixed4a", 50, None, tuple(range(50))),), samples=("top", "random"))
    values = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    part = part_of(values, 0, spec)

    def of_shard(position):
        sampled = replace(part.sampled, shard=part.sampled.shard + position)
        return position, replace(part, scores=part.scores._replace(shard=part.scores.shard + position), sampled=sampled)

    def peak(shards):
        tracemalloc.start()
        fold((of_shard(position) for position in range(shards)), spec)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # Kept whole, the parts of 800 more would be several times the peak.
    assert peak(1000) < 1.5 * peak(200)


# Tasks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """2,000 synthetic shards, scanned: (what is in them, run folder)."""
    synthetic = Synthetic(2000, [5, 3], different=40, rows=30, classes=7)
    return synthetic, synthetic.write(tmp_path_factory.mktemp("many") / "run")


class Merging(ExemplarsJob):
    """Merges, and no more."""

    def reduce(self, context):
        self.merged, failed = answer.merge_parts(self.plan.spec, context)
        return Reduced(failed)


def merge_it(run):
    """Merge a run folder's parts on the tests' Ray: (what they come to, or None; failures)."""
    folder = RunFolder(str(run))
    plan = Plan.read(folder)
    manifest = plan.manifest()
    completed = folder.state(manifest, ScannedShard.of).completed
    with Cluster(Resources()) as cluster, open(os.devnull, "w") as nowhere:
        context = Context(cluster, folder, manifest, completed, Console(file=nowhere))
        job = Merging(plan, cluster)
        reduced, _ = reduced_without_wrong(job, context, allow_partial=False)
        return None if reduced.failed else job.merged, dict(reduced.failed)


@pytest.fixture(scope="module")
def undisturbed(many, ray_cluster):
    """What their parts merge to."""
    merged, failed = merge_it(many[1])
    assert failed == {}
    return merged


def bytes_of(merged, spec):
    return parts.to_files(Part(merged.scores, merged.tallies, merged.sampled), spec)


def test_many_shards_merge_to_what_numpy_says(many, undisturbed):
    assert undisturbed.shards.tolist() == list(range(2000))
    many[0].check(undisturbed)


def test_a_merging_worker_that_is_lost_changes_no_byte(many, undisturbed):
    synthetic, run = many
    killed, over = [], threading.Event()

    def kill_some():
        while len(killed) < 2 and not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith("ray::fold_group") and process.pid not in killed:
                        process.kill()
                        killed.append(process.pid)
                        break

    killer = threading.Thread(target=kill_some)
    killer.start()
    merged, failed = merge_it(run)
    over.set()
    killer.join()
    assert failed == {}
    assert killed
    assert bytes_of(merged, synthetic.spec) == bytes_of(undisturbed, synthetic.spec)


def test_a_torn_part_among_many_is_named_and_scanned_again(many, ray_cluster):
    _, run = many
    torn = run / "parts" / "000700.moments.parquet"
    whole = torn.read_bytes()
    record = (run / "parts" / "000700.json").read_bytes()
    # A file of its own: the part has links at other positions.
    torn.unlink()
    torn.write_bytes(whole[:-1])
    try:
        merged, failed = merge_it(run)
        assert merged is None
        reason = failed.pop("train-000700.parquet")
        assert "000700.moments.parquet is not the file that was committed; run again to scan it again" in reason
        assert failed == {}
        folder = RunFolder(str(run))
        assert list(folder.state(Plan.read(folder).manifest()).failed) == [700]
    finally:
        (run / "failed" / "000700.json").unlink(missing_ok=True)
        torn.write_bytes(whole)
        (run / "parts" / "000700.json").write_bytes(record)


def test_a_part_that_only_the_workers_do_not_see_is_not_lost(many, ray_cluster, monkeypatch, tmp_path):
    """As on a machine where the run folder's file system is not mounted."""
    _, run = many
    monkeypatch.setattr(RunFolder, "full_uri", str(tmp_path / "not mounted"))
    before = sorted(os.listdir(run / "parts"))
    merged, failed = merge_it(run)
    assert merged is None
    [reason] = failed.values()
    assert "is gone, says the worker that merges it, but here it is whole" in reason
    assert sorted(os.listdir(run / "parts")) == before


def test_merging_needs_neither_torch_nor_ray(many):
    _, run = many
    program = (
        "from exemplar_ray.exemplars.merge import FoldTask, fold_group\n"
        "from exemplar_ray.exemplars.plan import Plan\n"
        "from exemplar_ray.runs.run_folder import RunFolder\n"
        "plan = Plan.read(RunFolder(sys.argv[1]))\n"
        "task = FoldTask(plan.spec, sys.argv[1], plan.fingerprint)\n"
        "print(len(fold_group(task, [0, 5]).scores.row))\n"
    )
    assert int(python_without("ray torch torchvision", program, run)) > 0


def test_the_status_of_many_shards_is_there_at_once(many, cli):
    _, run = many
    started = time.monotonic()
    status, text = cli("status", run)
    assert time.monotonic() - started < 5
    assert status == 1
    assert "shards: 2000 in all, 2000 done" in text
    assert "rows: 60000 read = 60000 scored + 0 skipped" in text
