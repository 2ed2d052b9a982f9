"""Images that a scan saw leave a channel at 0: an exemplar among them is found, and needs no second scan."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, TINY_NETWORK, write_tiny_data
from hypothesis import given, settings
from hypothesis import strategies as st
from test_samples import gathered
from test_spec import resolved

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import ImageRow
from exemplar_ray.exemplars.collect import PartCollector
from exemplar_ray.exemplars.merge import fold
from exemplar_ray.exemplars.parts import from_files, to_files
from exemplar_ray.exemplars.rerank.selection import Selection, rerank
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.topk import NEAR_ZERO, concatenate, merge
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.statistics import STATISTICS, Statistic
from exemplar_ray.network.trunk import Pooled, Trunk

ROWS = 20
TOP_K = 3
CPU = torch.device("cpu")
TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)


def spec_of(channels, **changes):
    layer = Layer("mixed4a", channels, None, tuple(range(channels)))
    changes = {"top_k": TOP_K, "margin": 4, "precision": "bfloat16", "statistics": ("max",), **changes}
    return resolved(layers=(layer,), **changes)


def scan(spec, seen, has_relu=True):
    """Collect what a scan saw before the ReLU, [images, channels], as parts of shards of `ROWS` images."""
    for position, first in enumerate(range(0, len(seen), ROWS)):
        values = torch.tensor(seen[first : first + ROWS], dtype=torch.float32)
        pre_relu = values if has_relu else torch.full_like(values, torch.nan)
        pooled = Pooled(
            {("mixed4a", "max"): values.clamp(min=0)}, {("mixed4a", "max"): pre_relu} if spec.screened else {}
        )
        with PartCollector(ScanSettings(spec, ROWS, threads=1), position, CPU) as collector:
            collector.add(pooled, [ImageRow(row, None, None, None) for row in range(len(values))])
            part, _ = collector.result()
        # As the merge finds it.
        yield position, from_files(to_files(part, spec), position, spec)


def hash_of(image, alike):
    """Return a hash that is near no other image's, but for the first, which look alike."""
    return np.random.default_rng(max(image, alike - 1)).bytes(32)


def select(truth, seen, has_relu=True, alike=0, **changes):
    """Search for the exemplars of a screening that saw this of that, both before the ReLU, [images, channels].

    Returns:
        The selection once nothing more is wanted, and {image: how often it was recomputed}.
    """
    spec = spec_of(truth.shape[1], **changes)
    selection = Selection(spec, fold(scan(spec, seen, has_relu), spec), len(truth))
    recomputed = Counter()

    def gather(wanted):
        found = {}
        for position, candidates in wanted.items():
            image = position * ROWS + candidates.row
            values = truth[image, candidates.channel]
            exact = np.where(candidates.ranking == NEAR_ZERO, values, np.maximum(values, 0))
            recomputed.update(set(image.tolist()))
            hashes = [hash_of(position * ROWS + row, alike) for row in range(ROWS)]
            found[position] = gathered(candidates, exact, [None] * ROWS, hashes)
        return found, {}

    assert rerank(selection, gather) == {}
    return selection, recomputed


def exemplars(selection, sample="top"):
    found = selection.result()
    which = np.array([name == sample for name in found.samples], bool)
    scores = found.scores.take(which)
    return list(
        zip(
            scores.channel.tolist(),
            scores.activation.tolist(),
            (scores.shard * ROWS + scores.row).tolist(),
            strict=True,
        )
    )


def expected(truth, channel=0):
    """Return the exact answer: by activation, then by place."""
    strengths = np.maximum(truth[:, channel], 0).astype(np.float32)
    order = sorted(range(len(truth)), key=lambda image: (-strengths[image], image))[:TOP_K]
    return [(channel, float(strengths[image]), image) for image in order]


def far_below(images=60, seed=0):
    return -np.random.default_rng(seed).uniform(0.5, 5.0, (images, 1))


def off(truth, by=0.01, seed=1):
    """Return what a scan sees that is off by so much, one way or the other."""
    return truth + by * np.random.default_rng(seed).choice([-1, 1], truth.shape)


def test_a_channel_that_hardly_fires_is_settled_by_a_few_images():
    truth = far_below()
    truth[[25, 50]] = [[0.4], [0.9]]
    selection, recomputed = select(truth, off(truth))
    assert selection.unsettled() == []
    assert (
        exemplars(selection) == expected(truth) == [(0, pytest.approx(0.9), 50), (0, pytest.approx(0.4), 25), (0, 0, 0)]
    )
    assert len(recomputed) <= 2 + 2 * TOP_K


@pytest.mark.parametrize("firing", [0, 1])
def test_an_exemplar_that_the_scan_saw_at_zero_is_found(firing):
    """Behind the nearest few, which are looked at first; in a channel that seemed dead, too."""
    truth, seen = far_below(), off(far_below())
    if firing:
        truth[10], seen[10] = 0.5, 0.51
    truth[52:55], seen[52:55] = -0.018, -0.008
    truth[44], seen[44] = 0.001, -0.009
    selection, recomputed = select(truth, seen)
    assert selection.unsettled() == []
    assert exemplars(selection) == expected(truth)
    assert 44 in [image for _, _, image in exemplars(selection)]
    assert {44, 52, 53, 54} <= recomputed.keys()


def test_of_images_at_zero_the_first_are_shown_whatever_the_scan_took_for_more():
    truth, seen = far_below(), off(far_below())
    truth[40:45], seen[40:45] = -0.005, 0.005
    selection, _ = select(truth, seen)
    assert selection.unsettled() == []
    assert exemplars(selection) == expected(truth) == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]


def test_distinct_exemplars_at_zero_are_the_first_too():
    truth, seen = far_below(), off(far_below())
    truth[7], seen[7] = 0.3, 0.31
    truth[40:45], seen[40:45] = -0.005, 0.005
    # All that come before the last of the first shard look alike.
    changes = {"distinct": True, "alike": 19}
    selection, _ = select(truth, seen, **changes)
    exact, _ = select(truth, truth, **changes, precision="float32")
    assert exemplars(selection, "distinct") == exemplars(exact, "distinct")
    assert [image for _, _, image in exemplars(selection, "distinct")] == [7, 19, 20]


def test_more_images_near_zero_than_were_kept_are_doubt():
    truth = far_below()
    truth[:40] = -0.005
    selection, _ = select(truth, off(truth))
    assert selection.unsettled() == [(0, 0)]


def test_without_a_relu_to_look_behind_there_is_doubt_as_ever():
    truth = far_below()
    truth[[25, 50]] = [[0.4], [0.9]]
    selection, _ = select(truth, off(truth), has_relu=False)
    assert selection.unsettled() == [(0, 0)]


def test_parts_hold_what_comes_near_only_of_channels_that_go_down_to_zero():
    spec = spec_of(2)
    truth = np.concatenate([far_below(), far_below(seed=2)], axis=1)
    truth[:15, 0], truth[:3, 1] = 1.0, 1.0
    parts = list(scan(spec, truth))
    near = parts[0][1].scores.take(parts[0][1].scores.ranking == NEAR_ZERO)
    assert near.channel.tolist() == [1] * (TOP_K + 4)
    assert (near.activation < 0).all()
    # Together the shards know seven that excite the first channel, and none at 0 can be stronger.
    selection, _ = select(truth, truth)
    assert set(selection._extremes._near_zero.nearest.channel.tolist()) == {1}


def test_an_image_is_recomputed_once_for_all_channels_that_may_ask_for_it():
    truth = np.random.default_rng(0).uniform(1, 2, (60, 2))
    truth[3:6, 0] = [9, 8, 7]
    # The fourth to the sixth of the other channel, so near to the third that the error leaves doubt.
    truth[:6, 1] = [5.04, 5.03, 5.02, 5.015, 5.01, 5.005]
    selection, recomputed = select(truth, off(truth))
    assert selection.unsettled() == []
    assert exemplars(selection) == [*expected(truth), *expected(truth, 1)]
    assert {3, 4, 5} <= recomputed.keys()
    assert set(recomputed.values()) == {1}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-60, 12), min_size=1, max_size=70),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([1, 4, 10]),
)
def test_settled_is_never_wrong(truth, seed, error, margin):
    """If every error is as large as those that are seen, settled means equal to the truth, ties included."""
    # Odd halves: no activation is 0 before the ReLU, and none is off by what makes it 0.
    truth = (np.array(truth)[:, None] + 0.25) / 10
    selection, _ = select(truth, off(truth, error / 10, seed), margin=margin)
    if not selection.unsettled():
        assert exemplars(selection) == expected(truth)[: len(truth)]


def test_candidates_near_zero_are_merged_as_others_are():
    spec = spec_of(1)
    parts = list(scan(spec, far_below()))
    near = concatenate(part.scores for _, part in parts)
    near = near.take(near.ranking == NEAR_ZERO)
    folded = fold(parts, spec).scores
    found = folded.take(folded.ranking == NEAR_ZERO).activation
    # No deeper than the first shard that could not keep more.
    best = merge([near], {NEAR_ZERO: len(near.row)})
    assert found.tolist() == best.activation[: len(found)].tolist()
    assert len(found) >= TOP_K + 4


# What networks give ------------------------------------------------------------------------


def test_a_trunk_says_how_near_an_image_comes_to_exciting_a_channel():
    from tiny_network import hardly_firing

    network = hardly_firing().eval()
    layers = describe_layers(network, ("mixed", "mixed_pre_relu", "classifier"), "all", TINY)
    crops = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = ("mean", "max", "center")
    plain = Trunk(network, layers, statistics, TINY, CPU)(crops)
    found = Trunk(network, layers, statistics, TINY, CPU, pre_relu=True)(crops)
    assert plain.pre_relu == {}
    plain = plain.activations
    assert found.activations.keys() == found.pre_relu.keys() == plain.keys()
    assert all(torch.equal(found.activations[key], values) for key, values in plain.items())
    for statistic, of_map in (("mean", "max"), ("max", "max"), ("center", "center")):
        near = found.pre_relu["mixed", statistic]
        assert torch.equal(near, plain["mixed_pre_relu", of_map])
        assert torch.equal(near > 0, plain["mixed", statistic] > 0)
        assert (near < 0).any()
        for layer in ("mixed_pre_relu", "classifier"):
            assert found.pre_relu[layer, statistic].isnan().all()


def test_a_statistic_of_the_users_own_says_nothing_of_it(monkeypatch):
    from tiny_network import trained

    spread = Statistic("standard deviation of the channel's map", lambda maps: maps.std(dim=(2, 3)))
    monkeypatch.setitem(STATISTICS, "spread", spread)
    network = trained().eval()
    layers = describe_layers(network, ("mixed",), "all", TINY)
    crops = torch.zeros((2, 32, 32, 3), dtype=torch.uint8)
    found = Trunk(network, layers, ("spread",), TINY, CPU, pre_relu=True)(crops)
    assert found.pre_relu["mixed", "spread"].isnan().all()


ANSWER = ["layer", "statistic", "channel", "sample", "rank", "activation", "shard", "row", "percentile"]


@pytest.mark.parametrize("flags", [["--compile", "never"], ["--compile", "always", "--statistic", "mean", "max"]])
def test_a_run_of_channels_that_hardly_fire_needs_no_second_scan(cli, tmp_path, ray_cluster, flags):
    write_tiny_data(tmp_path / "data", shards=3, rows=40)
    hardly = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":hardly_firing"), *flags]
    for name, screening in (("exact", []), ("screened", ["--precision", "bfloat16", "--decode", "fast"])):
        status, text = cli("run", "--data", tmp_path / "data", "--out", tmp_path / name, *hardly, *screening)
        assert status == 0, text
    assert "in doubt" not in text
    exact, screened = (
        pq.read_table(tmp_path / name / "exemplars.parquet", columns=ANSWER) for name in ("exact", "screened")
    )
    assert screened.to_pylist() == exact.to_pylist()
    # What is to be shown is there: channels that fire on some images, but on fewer than are shown, and on none.
    shown = [row for row in exact.to_pylist() if row["statistic"] == exact["statistic"][0].as_py()]
    fires = np.bincount([row["channel"] for row in shown if row["activation"] > 0], minlength=12)
    assert set(fires.tolist()) == {0, 1, 2, 3}
    summary = json.loads((tmp_path / "screened" / "summary.json").read_text())
    assert (summary["unsettled"], summary["settled_anew"]) == ([], 0)
