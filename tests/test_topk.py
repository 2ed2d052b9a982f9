"""The algebra: however images are split into shards and parts are merged, sorting everything wins."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_spec import resolved

from exemplar_ray import merge as folding
from exemplar_ray.parts import CANDIDATE_MARGIN, Part
from exemplar_ray.running_topk import RunningTopK, pack, unpack
from exemplar_ray.spec import Layer
from exemplar_ray.topk import Scores, concatenate, merge, rank

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


def sorted_everything(shards, keep):
    """The definition: sort all finite activations; -0 is 0. Plain Python, none of the package."""
    result = []
    for channel in range(shards[0].shape[1]):
        everything = [
            (-(float(values[row, channel]) + 0.0), shard, row)
            for shard, values in enumerate(shards)
            for row in range(len(values))
            if np.isfinite(values[row, channel])
        ]
        result += [(channel, -a, shard, row) for a, shard, row in sorted(everything)[:keep]]
    return result


def scan(values, shard, keep, batch):
    """Do what the scan does with one shard's activations."""
    running = RunningTopK(values.shape[1], keep, torch.device("cpu"))
    for start in range(0, len(values), batch):
        piece = torch.from_numpy(values[start : start + batch])
        running.update(piece, torch.arange(start, start + len(piece)))
    channel, activation, row, not_finite = (t.numpy() for t in running.result())
    n = len(row)
    scores = Scores(
        np.zeros(n, np.int32), channel.astype(np.int32), activation, np.full(n, shard, np.int32), row.astype(np.int64)
    )
    return scores, not_finite


def as_tuples(scores):
    return [
        (int(c), float(a), int(s), int(r))
        for c, a, s, r in zip(scores.channel, scores.activation, scores.shard, scores.row, strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), shards=data_sets(), keep=st.integers(1, 6), batch=st.integers(1, 5))
def test_any_split_order_grouping_and_repetition_gives_what_sorting_gives(data, shards, keep, batch):
    parts = []
    for position, values in enumerate(shards):
        part, not_finite = scan(values, position, keep, batch)
        assert not_finite.tolist() == (~np.isfinite(values)).sum(axis=0).tolist()
        parts.append(part)
    parts += data.draw(st.lists(st.sampled_from(parts), max_size=3), label="merged twice")
    pool = data.draw(st.permutations(parts), label="order")
    while len(pool) > 1:
        group = data.draw(st.integers(2, len(pool)), label="group")
        pool = [merge(pool[:group], keep), *pool[group:]]
        pool = data.draw(st.permutations(pool), label="order")
    expected = sorted_everything(shards, keep)
    assert as_tuples(merge(pool, keep)) == expected


def test_the_fold_is_the_same_however_many_parts_it_takes_at_once(monkeypatch):
    random = np.random.default_rng(0)
    parts = [scan(random.integers(0, 4, (20, 5)).astype(np.float32), p, 4, 7)[0] for p in range(50)]
    spec = resolved(layers=(Layer("mixed4a", 5, (14, 14), tuple(range(5))),), top_k=4 - CANDIDATE_MARGIN)
    at_once = merge(parts, 4)
    in_parts = [(p, Part(scores, Part.empty(spec).tallies)) for p, scores in enumerate(parts)]
    for size in (1, 2, 7, 49, 50, 51):
        monkeypatch.setattr(folding, "PARTS_PER_FOLD", size)
        assert as_tuples(folding.fold([*in_parts, *in_parts[:9]], spec).scores) == as_tuples(at_once)


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


def test_ranks_count_from_one_within_each_series_and_channel():
    scores = Scores(
        series=np.array([1, 0, 0, 0], np.int32),
        channel=np.array([0, 5, 5, 4], np.int32),
        activation=np.array([1, 2, 3, 9], np.float32),
        shard=np.zeros(4, np.int32),
        row=np.arange(4),
    )
    order, ranks = rank(scores)
    ranked = scores.take(order)
    assert list(zip(ranked.series, ranked.channel, ranks, strict=True)) == [(0, 4, 1), (0, 5, 1), (0, 5, 2), (1, 0, 1)]
    assert ranked.activation.tolist() == [9, 3, 2, 1]


def test_nothing_merges_to_nothing():
    assert len(merge([], 3).row) == 0
    assert len(merge([Scores.empty(), concatenate([])], 3).row) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_activations_are_never_ranked(bad):
    one = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="finite"):
        rank(Scores(one, one, np.array([bad], np.float32), one, one.astype(np.int64)))
