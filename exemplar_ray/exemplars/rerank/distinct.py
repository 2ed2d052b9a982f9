"""Exemplars without near-duplicates, and near-duplicates among exemplars. Numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from exemplar_ray.exemplars.near_duplicates import near_duplicates_of, pick_distinct
from exemplar_ray.exemplars.rerank.certainty import BoundedRanking
from exemplar_ray.exemplars.rerank.extremes import Extremes
from exemplar_ray.exemplars.rerank.recomputed import RecomputedScores
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import TOP, spans


class Picked(NamedTuple):
    """One channel's distinct exemplars among the candidates looked at."""

    group: int
    exact: np.ndarray
    """int64: indices into the recomputed scores."""
    enough: bool
    """There are K, or the data set holds no more."""


def pick_all(
    spec: ExemplarsSpec, extremes: Extremes, bounded: BoundedRanking, recomputed: RecomputedScores
) -> Iterator[Picked]:
    """Pick every channel's distinct exemplars; none if the run does not ask for them."""
    if not spec.distinct:
        return
    ranked, exact = extremes.candidates, recomputed.exact
    strongest = ranked.scores.ranking[bounded.order] == TOP
    order = bounded.order[strongest]
    groups, among = ranked.group_of[order], extremes.find(order)
    outside = bounded.strongest_outside
    # An image outside might stand before those that its upper bound exceeds.
    sure = bounded.scan_order_is_exact | np.isneginf(outside)
    activation = exact.activation[among]
    clear = sure[groups] | (activation > bounded.upper_bound[groups]) | (activation >= bounded.tie_value[groups])
    # Some images are at 0 though the scan saw them above it, or near to it. Between these, others may be missing.
    last = ranked.scores.take(ranked.firsts + extremes.depths - 1)
    shard, row = exact.shard[among], exact.row[among]
    behind = (shard > last.shard[groups]) | ((shard == last.shard[groups]) & (row > last.row[groups]))
    clear &= ~((activation == 0) & behind & ranked.has_pre_relu[groups] & ~np.isneginf(outside[groups]))
    for span in spans(groups):
        group, usable = int(groups[span][0]), among[span][clear[span]]
        labels, hashes = zip(*(recomputed.image(i) for i in usable), strict=True) if len(usable) else ((), ())
        picked = pick_distinct(hashes, labels, spec.top_k, spec.max_per_class)
        enough = len(picked) == spec.top_k or bool(np.isneginf(outside[group]))
        yield Picked(group, usable[picked], enough)


def duplicates_of(
    recomputed: RecomputedScores, exact: np.ndarray, sample: np.ndarray, ranks: np.ndarray
) -> list[int | None]:
    """Return for each exemplar the rank of the near-duplicate above it, in the same channel and sample.

    Args:
        exact: int64 [exemplars]: indices into the recomputed scores.
        sample: int [exemplars]: equal numbers for exemplars of a sample.
        ranks: int [exemplars]
    """
    readout, channel = recomputed.exact.readout[exact], recomputed.exact.channel[exact]
    order = np.lexsort((ranks, sample, channel, readout))
    result: list[int | None] = [None] * len(exact)
    for span in spans(readout[order], channel[order], sample[order]):
        group = order[span]
        near = near_duplicates_of([recomputed.image(exact[i])[1] for i in group])
        for i, first in zip(group, near, strict=True):
            result[i] = None if first is None else int(ranks[group[first]])
    return result
