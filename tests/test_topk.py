"""The algebra: however images are split into shards and parts are merged, sorting everything wins."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_spec import resolved

from exemplar_ray.exemplars import merge as folding
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.running_topk import RunningTopK, pack, unpack
from exemplar_ray.exemplars.samples import SampledImages
from exemplar_ray.exemplars.topk import (
    BOTTOM,
    NEAR_ZERO,
    NO_LABEL,
    OF_CLASS,
    TOP,
    Scores,
    concatenate,
    find,
    merge,
    rank,
)
from exemplar_ray.network.layers import Layer

# Few distinct values, so that ties are the rule; the awkward ones among them.
activations = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-45]),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@st.composite
def data_sets(draw):
    """A list of shards, each float32 [rows, channels]."""
    channels = draw(st.integers(1, 3))
    rows = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    return [
        np.array(draw(st.lists(st.lists(activations, min_size=channels, max_size=channels), min_size=n, max_size=n)))
        .astype(np.float32)
        .reshape(n, channels)
        for n in rows
    ]


def make_scores(channel, activation, shard, row, readout=0, ranking=TOP, label=NO_LABEL):
    """Scores from arrays or single values."""
    n = len(activation)
    types = Scores.empty()
    columns = Scores(readout, ranking, label, channel, activation, shard, row)
    return Scores(*(np.broadcast_to(c, n).astype(t.dtype) for c, t in zip(columns, types, strict=True)))


def sorted_everything(shards, keep, sign=1):
    """The definition: sort all finite activations; -0 is 0. Plain Python, none of the package."""
    result = []
    for channel in range(shards[0].shape[1]):
        everything = [
            (-sign * float(values[row, channel]) + 0.0, shard, row)
            for shard, values in enumerate(shards)
            for row in range(len(values))
            if np.isfinite(values[row, channel])
        ]
        result += [(channel, -sign * a + 0.0, shard, row) for a, shard, row in sorted(everything)[:keep]]
    return result


def scan(values, shard, keep, batch, sign=1):
    """Do what the scan does with one shard's activations, for the strongest or (sign -1) the weakest."""
    running = RunningTopK(values.shape[1], keep, torch.device("cpu"))
    for start in range(0, len(values), batch):
        piece = torch.from_numpy(values[start : start + batch])
        running.update(sign * piece, torch.arange(start, start + len(piece)))
    channel, activation, row = (t.numpy() for t in running.result())
    scores = make_scores(channel, sign * activation, shard, row, ranking=TOP if sign > 0 else BOTTOM)
    return scores, running.not_finite.numpy()


def as_tuples(scores):
    return [
        (int(c), float(a) + 0.0, int(s), int(r))
        for c, a, s, r in zip(scores.channel, scores.activation, scores.shard, scores.row, strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    shards=data_sets(),
    keep=st.integers(1, 6),
    batch=st.integers(1, 5),
    ranking=st.sampled_from([TOP, BOTTOM]),
)
def test_any_split_order_grouping_and_repetition_gives_what_sorting_gives(data, shards, keep, batch, ranking):
    parts, sign, kept = [], 1 if ranking == TOP else -1, {ranking: keep}
    for position, values in enumerate(shards):
        part, not_finite = scan(values, position, keep, batch, sign)
        assert not_finite.tolist() == (~np.isfinite(values)).sum(axis=0).tolist()
        parts.append(part)
    parts += data.draw(st.lists(st.sampled_from(parts), max_size=3), label="merged twice")
    pool = data.draw(st.permutations(parts), label="order")
    while len(pool) > 1:
        group = data.draw(st.integers(2, len(pool)), label="group")
        pool = [merge(pool[:group], kept), *pool[group:]]
        pool = data.draw(st.permutations(pool), label="order")
    assert as_tuples(merge(pool, kept)) == sorted_everything(shards, keep, sign)


def test_rankings_and_classes_are_ranked_apart_and_what_is_not_kept_is_dropped():
    activation = np.array([1, 2, 3, 4], np.float32)
    rankings = [make_scores(0, activation, 0, np.arange(4), ranking=ranking) for ranking in (TOP, BOTTOM, NEAR_ZERO)]
    of_class = make_scores(0, activation, 0, np.arange(4), ranking=OF_CLASS, label=[7, 8, 7, 8])
    merged = merge([*rankings, of_class], {TOP: 2, BOTTOM: 1, OF_CLASS: 1, NEAR_ZERO: 1})
    found = list(zip(merged.ranking.tolist(), merged.label.tolist(), merged.activation.tolist(), strict=True))
    unlabelled = [(TOP, NO_LABEL, 4), (TOP, NO_LABEL, 3), (BOTTOM, NO_LABEL, 1)]
    assert found == [*unlabelled, (OF_CLASS, 7, 3), (OF_CLASS, 8, 4), (NEAR_ZERO, NO_LABEL, 4)]
    assert set(merge([*rankings, of_class], {TOP: 9}).ranking.tolist()) == {TOP}


def test_scores_are_found_by_channel_and_image_whatever_they_compete_for():
    among = make_scores([0, 1, 1], np.zeros(3), [0, 0, 2], [5, 5, 5])
    wanted = make_scores([1, 1, 0, 0], np.ones(4), [2, 1, 0, 0], [5, 5, 5, 4], ranking=BOTTOM)
    assert find(among, wanted).tolist() == [2, -1, 0, -1]
    assert find(Scores.empty(), wanted).tolist() == [-1] * 4
    assert find(among, Scores.empty()).tolist() == []
    # What an image gave before its ReLU is another number.
    nearest = among._replace(ranking=np.full(3, NEAR_ZERO, np.int8))
    assert find(among, nearest).tolist() == [-1] * 3
    assert find(nearest, nearest).tolist() == [0, 1, 2]


def test_the_fold_is_the_same_however_many_parts_it_takes_at_once(monkeypatch):
    random = np.random.default_rng(0)
    parts = [scan(random.integers(0, 4, (20, 5)).astype(np.float32), p, 4, 7)[0] for p in range(50)]
    spec = resolved(layers=(Layer("mixed4a", 5, (14, 14), tuple(range(5))),), top_k=3, margin=1)
    in_parts = [(p, Part(scores, Part.empty(spec).tallies, SampledImages.empty([5]))) for p, scores in enumerate(parts)]
    at_once = folding.fold(in_parts, spec).scores
    for size in (1, 40, 120, 999, 1000, 1001):
        monkeypatch.setattr(folding, "_CANDIDATES_PER_FOLD", size)
        assert as_tuples(folding.fold([*in_parts, *in_parts[:9]], spec).scores) == as_tuples(at_once)


@settings(max_examples=200, deadline=None)
@given(shards=data_sets(), top_k=st.integers(1, 3), margin=st.integers(0, 3), ranking=st.sampled_from([TOP, BOTTOM]))
def test_the_fold_leaves_no_image_out_above_its_last(shards, top_k, margin, ranking):
    """Together shards know more than each kept, but only down to where the first of them stopped."""
    sign, channels, kept = (1 if ranking == TOP else -1), shards[0].shape[1], top_k + margin
    layers = (Layer("mixed4a", channels, None, tuple(range(channels))),)
    spec = resolved(layers=layers, top_k=top_k, margin=margin, samples=("top", "bottom"))
    parts = [scan(values, position, kept, 5, sign)[0] for position, values in enumerate(shards)]
    tallies = Part.empty(spec).tallies
    folded = folding.fold(
        [(p, Part(scores, tallies, SampledImages.empty([channels]))) for p, scores in enumerate(parts)], spec
    )
    for channel in range(channels):
        mine = as_tuples(folded.scores.take(folded.scores.channel == channel))
        everything = [one for one in sorted_everything(shards, 10_000, sign) if one[0] == channel]
        assert mine == everything[: len(mine)]
        assert len(mine) >= min(kept, len(everything))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20),
    st.lists(st.integers(0, 2**32 - 1), min_size=20, max_size=20),
)
@example([-0.0, 0.0], [1, 0] * 10)
@example([3.4028235e38, -3.4028235e38], [0, 2**32 - 1] * 10)
def test_packed_keys_order_as_activations_and_rows_do_and_unpack(values, rows):
    values = np.array(values, dtype=np.float32)
    rows = np.array(rows[: len(values)])
    keys = pack(torch.from_numpy(values), torch.from_numpy(rows))
    by_key = np.argsort(-keys.numpy().astype(object), kind="stable")
    by_definition = sorted(range(len(values)), key=lambda i: (-(float(values[i]) + 0.0), rows[i]))
    assert [(values[i] + 0.0, rows[i]) for i in by_key] == [(values[i] + 0.0, rows[i]) for i in by_definition]
    activation, row = unpack(keys)
    assert torch.equal(activation, torch.from_numpy(values) + 0.0)
    assert row.tolist() == rows.tolist()


def narrow_or_wide(least, most):
    return st.one_of(st.integers(max(least, -2), 2), st.integers(least, most))


def all_but_the_activation(score):
    return (*score[:3], *score[4:])


@settings(max_examples=300, deadline=None)
@given(
    columns=st.lists(
        st.tuples(
            narrow_or_wide(0, 2**31 - 1),
            st.sampled_from([TOP, BOTTOM, NEAR_ZERO]),
            narrow_or_wide(-(2**63), 2**63 - 1),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            narrow_or_wide(0, 2**31 - 1),
            narrow_or_wide(0, 2**63 - 1),
        ),
        max_size=30,
        unique_by=all_but_the_activation,
    )
)
def test_the_order_does_not_depend_on_how_wide_the_numbers_are(columns):
    """Labels, shards and rows as large as their types: however many sort keys it takes, the order is one."""
    types = (np.int32, np.int8, np.int64, np.float32, np.int32, np.int64)
    pairs = zip(zip(*columns, strict=True), types, strict=True) if columns else ([[], kind] for kind in types)
    channel, ranking, label, activation, shard, row = (np.array(values, kind) for values, kind in pairs)
    scores = make_scores(channel, activation, shard, row, ranking=ranking, label=label)
    signed = np.where(ranking == BOTTOM, activation, -activation)

    def definition(i):
        return int(ranking[i]), int(channel[i]), int(label[i]), float(signed[i]), int(shard[i]), int(row[i])

    assert rank(scores)[0].tolist() == sorted(range(len(columns)), key=definition)


def test_ranks_count_from_one_within_each_readout_and_channel():
    scores = make_scores([0, 5, 5, 4], np.array([1, 2, 3, 9]), 0, np.arange(4), readout=[1, 0, 0, 0])
    order, ranks = rank(scores)
    ranked = scores.take(order)
    assert list(zip(ranked.readout, ranked.channel, ranks, strict=True)) == [(0, 4, 1), (0, 5, 1), (0, 5, 2), (1, 0, 1)]
    assert ranked.activation.tolist() == [9, 3, 2, 1]


def test_nothing_merges_to_nothing():
    assert len(merge([], {TOP: 3}).row) == 0
    assert len(merge([Scores.empty(), concatenate([])], {TOP: 3}).row) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_activations_are_never_ranked(bad):
    with pytest.raises(ValueError, match="finite"):
        rank(make_scores(0, np.array([bad]), 0, 0))
