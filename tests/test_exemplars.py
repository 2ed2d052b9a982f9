"""Ranking recomputed candidates, and knowing when the ranking is beyond doubt."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_topk import make_scores

from exemplar_ray.exemplars.gathered import IMAGES_SCHEMA
from exemplar_ray.exemplars.rerank.certainty import Groups, Recomputed, rank_with_bounds
from exemplar_ray.exemplars.tables.exemplars import ImageSpool
from exemplar_ray.exemplars.topk import BOTTOM, TOP, merge, number_groups, strength


def candidates(activations, ranking=TOP):
    return make_scores(0, np.array(activations, np.float32), 0, np.arange(len(activations)), ranking=ranking)


def bounded(scanned, positions, exact, top_k, groups):
    """Rank sorted candidates, of which those at some positions were recomputed."""
    recomputed = Recomputed(scanned.take(positions), number_groups(scanned)[positions], exact)
    return rank_with_bounds(recomputed, positions, top_k, groups)


def ranked(scanned, exact, top_k=2, looked_at=None, more=False, screened=False):
    """Rank one channel's sorted candidates, of which the first were recomputed; more may have been dropped."""
    count = len(scanned.row) if looked_at is None else looked_at
    values = strength(scanned).astype(float)
    outside = values[count] if count < len(values) else values[-1] if more else -np.inf
    unknown = np.full(1, np.nan)
    groups = Groups(np.array([outside]), np.zeros(1, int), np.ones(1) * 1e-9, np.array([screened]), unknown)
    return bounded(scanned, np.arange(count), exact.activation[:count], top_k, groups)


def test_the_recomputed_activations_decide_the_order():
    result = ranked(candidates([5, 4, 3, 2]), candidates([4.9, 5.1, 3, 2]))
    assert result.order[:2].tolist() == [1, 0]
    assert result.ranks.tolist() == [1, 2, 3, 4]
    assert result.largest_error == pytest.approx(1.1, abs=1e-6)


@pytest.mark.parametrize(("sign", "ranking"), [(1, TOP), (-1, BOTTOM)])
def test_a_channel_is_settled_while_the_margin_holds_three_times_the_error(sign, ranking):
    def of(*activations):
        return candidates(sign * np.array(activations), ranking)

    scanned = of(5, 4, 3, 2)
    assert ranked(scanned, of(5, 4.25, 3, 2), more=True).settled  # error 0.25: an image outside has at most 2.75
    assert ranked(scanned, of(5, 4.25, 3, 2), looked_at=3).settled  # so has the last one, which was not looked at
    assert ranked(scanned, of(5, 4.25, 3, 2), looked_at=2).settled  # and the third at most 3.75
    assert not ranked(scanned, of(5, 3.75, 3, 2), looked_at=2).settled  # which is not less than 3.75
    assert not ranked(scanned, of(5, 4, 3, 4.5), more=True).settled  # error 2.5: an image outside may have 9.5
    # The same numbers, but nothing was left out: there is no image outside.
    assert ranked(scanned, of(5, 4, 3, 4.5)).settled


def test_without_a_margin_any_error_is_doubt_and_none_is_none():
    scanned = candidates([5, 4])
    assert not ranked(scanned, candidates([5, 4.0001]), more=True).settled
    assert ranked(scanned, scanned, more=True).settled


def test_fewer_than_k_are_settled_only_if_there_are_no_others():
    scanned = candidates([5, 4])
    assert not ranked(scanned, scanned, top_k=3, more=True).settled
    assert ranked(scanned, scanned, top_k=3).settled


def test_a_dead_channel_is_all_ties_and_settled():
    dead = candidates([0, 0, 0, 0])
    assert ranked(dead, dead, more=True).settled
    assert ranked(dead, dead, more=True).order.tolist() == [0, 1, 2, 3]


def test_ties_that_come_out_equal_again_are_taken_to_go_on():
    scanned, exact = candidates([5, 1, 1, 1, 1]), candidates([5.1, 1.1, 1.1, 1.1, 1.1])
    assert ranked(scanned, exact, looked_at=3).settled
    assert not ranked(scanned, exact, looked_at=2).settled  # one is not several
    assert not ranked(scanned, exact, looked_at=3, screened=True).settled
    assert not ranked(scanned, candidates([5, 1, 1.1, 1, 1]), looked_at=3).settled  # not equal again
    assert not ranked(scanned, candidates([5, 1, 1, 1, 1]), top_k=4, looked_at=3).settled  # fewer than K


def test_screening_that_makes_no_error_may_still_miss_one():
    scanned = candidates([5, 4, 4])
    assert ranked(scanned, scanned, looked_at=2).settled
    assert not ranked(scanned, scanned, looked_at=2, screened=True).settled
    assert ranked(scanned, scanned, screened=True).settled


def test_a_channel_with_a_lucky_few_is_given_its_layers_error():
    scanned = merge([make_scores([c] * 4, np.array([5, 4, 3.9, 1]), 0, np.arange(4)) for c in range(10)], {TOP: 4})
    exact = scanned.activation + np.where((scanned.channel > 2) & (scanned.row == 0), np.float32(0.5), np.float32(0))
    looked_at = np.flatnonzero(scanned.row < 2)
    ones = np.ones(10)
    for scale, settled in ((1.0, False), (0.01, True)):
        scales = np.array([scale] * 3 + [1.0] * 7)
        groups = Groups(3.9 * ones, np.zeros(10, int), scales, np.ones(10, bool), np.full(10, np.nan))
        result = bounded(scanned, looked_at, exact[looked_at], 2, groups)
        assert result.largest_error[0] == 0
        assert result.settled[0] == settled


@pytest.mark.parametrize(("recomputed", "settled"), [(48, False), (50, True)])
def test_where_very_many_were_recomputed_the_weaker_ones_tell_of_those_outside(recomputed, settled):
    """The strongest is off by 0.5, and so are the neighbours; the weaker half is off by next to nothing."""
    channels = [np.concatenate([np.linspace(9, 5, recomputed), [4], [0] * 10]), *(np.array([9, 8, 7, 4.9]),) * 2]
    each = [make_scores([c] * len(values), values, 0, np.arange(len(values))) for c, values in enumerate(channels)]
    scanned = merge(each, {TOP: 200})
    large = (scanned.channel > 0) | (scanned.row < recomputed / 2)
    exact = scanned.activation + np.where(large, np.float32(0.5), np.float32(0.001))
    looked_at = np.flatnonzero(np.where(scanned.channel > 0, scanned.row < 3, scanned.row < recomputed))
    outside = np.array([4, 4.9, 4.9])
    groups = Groups(outside, np.zeros(3, int), np.full(3, 9.0), np.ones(3, bool), np.full(3, np.nan))
    result = bounded(scanned, looked_at, exact[looked_at], recomputed, groups)
    assert result.settled[0] == settled
    assert result.largest_error[0] == pytest.approx(0.5)
    if settled:
        # One of the weaker is off as much.
        exact[looked_at[recomputed - 1]] += 0.5
        assert not bounded(scanned, looked_at, exact[looked_at], recomputed, groups).settled[0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.integers(-3, 3), min_size=30, max_size=30),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_a_settled_channel_is_never_wrong(truth, errors, top_k, looked_at, margin):
    """If three times the largest error seen bounds everyone's, settled means equal to the truth."""
    truth = np.array(truth, np.float32)
    scanned = candidates(truth + np.array(errors[: len(truth)]))
    kept = merge([scanned], {TOP: top_k + looked_at + margin})
    exact = kept._replace(activation=truth[kept.row])
    count = min(top_k + looked_at, len(kept.row))
    result = ranked(kept, exact, top_k, count, more=len(kept.row) < len(truth), screened=True)
    holds = np.abs(scanned.activation - truth).max() <= 3 * result.largest_error[0]
    if holds and result.settled:
        expected = merge([candidates(truth)], {TOP: top_k})
        assert exact.activation[result.order[result.ranks <= top_k]].tolist() == expected.activation.tolist()


def test_the_spool_gives_back_what_it_was_given():
    rows = {"row": [3, 8], "label": [1, None], "path": [None, "x.jpeg"], "bytes": [b"first", b"second" * 1000]}
    rows |= {"hash": [bytes(32), bytes(range(32))], "content": [b"1" * 32, b"2" * 32]}
    rows |= {"width": [40, 50], "height": [30, 20]}
    with ImageSpool() as spool:
        spool.add(7, pa.table(rows, schema=IMAGES_SCHEMA))
        # Of an image whose content is there, bytes need not come along.
        first = {name: values[:1] for name, values in rows.items()}
        spool.add(7, pa.table({**first, "row": [9], "bytes": [None]}, schema=IMAGES_SCHEMA))
        spool.add(7, pa.table({**first, "row": [10]}, schema=IMAGES_SCHEMA))
        for index, row in enumerate(rows["row"]):
            described = {
                name: values[index] for name, values in rows.items() if name not in ("bytes", "hash", "content")
            }
            assert spool.described(7, row) == described
        keys = [(7, 9), (7, 8), (7, 3)]
        assert spool.contents([spool.content(*key) for key in keys]).to_pylist() == [
            b"first",
            rows["bytes"][1],
            b"first",
        ]
        assert spool.paths(keys) == [None, "x.jpeg", None]
        assert [spool.size(*key) for key in keys] == [5, 6000, 5]
        assert spool.content(7, 9) == spool.content(7, 3) != spool.content(7, 8)
        assert spool.had(7, [3, 4, 9, 8]) == {3: b"1" * 32, 9: b"1" * 32, 8: b"2" * 32}
        assert spool.had(6, [3]) == {}
        assert [size for _, size in spool._contents] == [5, 6000]
        assert len(spool) == 4
