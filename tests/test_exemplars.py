"""Ranking recomputed candidates, and knowing when the ranking is beyond doubt."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_topk import make_scores

from exemplar_ray.exemplars import ImageSpool
from exemplar_ray.selection import IMAGES_SCHEMA, rank_exactly
from exemplar_ray.topk import BOTTOM, TOP, merge


def candidates(activations, contest=TOP):
    return make_scores(0, np.array(activations, np.float32), 0, np.arange(len(activations)), contest=contest)


def test_the_recomputed_activations_decide_the_order():
    scanned, exact = candidates([5, 4, 3, 2]), candidates([4.9, 5.1, 3, 2])
    ranking = rank_exactly(scanned, exact, top_k=2, looked_at=4)
    assert ranking.order[:2].tolist() == [1, 0]
    assert ranking.ranks.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("sign", "contest", "name"), [(1, TOP, "top"), (-1, BOTTOM, "bottom")])
def test_a_channel_is_settled_while_the_margin_holds_the_error(sign, contest, name):
    def of(*activations):
        return candidates(sign * np.array(activations), contest)

    scanned = of(5, 4, 3, 2)
    clear = of(5, 4.5, 3, 2)  # error 0.5: an image outside has at most 2.5
    assert rank_exactly(scanned, clear, top_k=2, looked_at=4).unsettled == []
    doubtful = of(5, 4, 3, 4.5)  # error 2.5: an image outside may have 4.5
    assert rank_exactly(scanned, doubtful, top_k=2, looked_at=4).unsettled == [(0, 0, name)]
    # The same numbers, but nothing was left out: there is no image outside.
    assert rank_exactly(scanned, doubtful, top_k=2, looked_at=5).unsettled == []


def test_without_a_margin_any_error_is_doubt_and_none_is_none():
    scanned = candidates([5, 4])
    assert rank_exactly(scanned, candidates([5, 4.0001]), top_k=2, looked_at=2).unsettled == [(0, 0, "top")]
    assert rank_exactly(scanned, scanned, top_k=2, looked_at=2).unsettled == []


def test_a_dead_channel_is_all_ties_and_settled():
    dead = candidates([0, 0, 0, 0])
    assert rank_exactly(dead, dead, top_k=2, looked_at=4).unsettled == []
    assert rank_exactly(dead, dead, top_k=2, looked_at=4).order.tolist() == [0, 1, 2, 3]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.integers(-3, 3), min_size=30, max_size=30),
    st.integers(1, 5),
    st.integers(0, 5),
)
def test_a_settled_channel_is_never_wrong(truth, errors, top_k, margin):
    """If the candidates' largest error bounds everyone's, settled means equal to the truth."""
    truth = np.array(truth, np.float32)
    scanned = candidates(truth + np.array(errors[: len(truth)]))
    kept = merge([scanned], {TOP: top_k + margin})
    exact = kept._replace(activation=truth[kept.row])
    ranking = rank_exactly(kept, exact, top_k, top_k + margin)
    seen = np.abs(kept.activation - exact.activation).max()
    bounded = np.abs(scanned.activation - truth).max() <= seen
    if bounded and not ranking.unsettled:
        expected = merge([candidates(truth)], {TOP: top_k})
        assert exact.activation[ranking.order[:top_k]].tolist() == expected.activation.tolist()


def test_the_spool_gives_back_what_it_was_given():
    rows = {"row": [3, 8], "label": [1, None], "path": [None, "x.jpeg"], "bytes": [b"first", b"second" * 1000]}
    rows |= {"hash": [bytes(32), bytes(range(32))]}
    rows |= {"width": [40, 50], "height": [30, 20]}
    with ImageSpool() as spool:
        spool.add(7, pa.table(rows, schema=IMAGES_SCHEMA))
        spool.add(7, pa.table({**{k: v[:1] for k, v in rows.items()}, "row": [9]}, schema=IMAGES_SCHEMA))
        for place, row in enumerate(rows["row"]):
            assert spool.image(7, row) == {"bytes": rows["bytes"][place], "path": rows["path"][place]}
            known = {name: values[place] for name, values in rows.items() if name not in ("bytes", "hash")}
            assert spool.known(7, row) == known
        assert spool.image(7, 9)["bytes"] == b"first"
        assert len(spool) == 3
