"""From merged parts to exemplars: which candidates to recompute, and what they then turn out to be.

Back and forth: `wanted` says what has to be recomputed next, `add` takes it in, until nothing is
wanted any more. One round does for the strongest and the weakest; more are needed where
near-duplicates are skipped and candidates run short, or where recomputing moves an image
over the edge of a percentile's band. Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from exemplar_ray import samples
from exemplar_ray.near_duplicates import near_duplicates_of, pick_distinct
from exemplar_ray.parts import CANDIDATE_MARGIN, Part, candidates_kept, candidates_looked_at, layers_and_statistics
from exemplar_ray.samples import draw, sampled_images
from exemplar_ray.spec import Layer, ResolvedSpec
from exemplar_ray.topk import (
    BOTTOM,
    NO_LABEL,
    OF_CLASS,
    TOP,
    Scores,
    concatenate,
    find,
    number_groups,
    rank,
    spans,
    strength,
)

# Gather's tables, image by image and candidate by candidate.
IMAGES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("path", pa.string()),
        ("bytes", pa.large_binary()),
        ("hash", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)

PLACES_SCHEMA = pa.schema(
    [
        # Where in the layer's map the channel is strongest, and the map, row by row.
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_map", pa.list_(pa.float16())),
    ]
)


@dataclass(frozen=True)
class Selected:
    """The exemplars of a run, in the order of results: by series, channel, rank, sample."""

    scores: Scores
    """Recomputed."""
    samples: list[str]
    ranks: np.ndarray
    """int32, from 1 within a sample."""
    duplicate_of: list[int | None]
    """Rank of the near-duplicate above, in the same channel and sample."""
    places: pa.Table
    """`PLACES_SCHEMA`, a row an exemplar."""
    largest_error: float
    """Largest difference between a scanned and a recomputed activation."""
    unsettled: list[tuple[int, int, str]]
    """(series, channel, sample) whose last exemplar is not clear of the images that were dropped."""
    short: list[tuple[int, int, int]]
    """(series, channel, exemplars) with fewer distinct exemplars than asked for, where the data set
    may hold more: the candidates that the scan kept ran out."""


@dataclass(frozen=True)
class _Picked:
    """One channel's distinct exemplars among the candidates looked at."""

    group: int
    among: np.ndarray
    """Indices into the recomputed candidates."""
    enough: bool


class _Drawn(NamedTuple):
    """What is drawn by priority: parallel names, ranks and scores, and who stands at the bands' edges."""

    samples: list[str]
    ranks: np.ndarray
    scores: Scores
    at_edges: Scores


class Selection:
    """The search for the exemplars among merged candidates."""

    def __init__(self, spec: ResolvedSpec, merged: Part) -> None:
        self._spec = spec
        self._pairs = layers_and_statistics(spec)
        ranked = merged.scores.take(merged.scores.contest != OF_CLASS)
        order, self._scan_ranks = rank(ranked)
        self._ranked = ranked.take(order)
        self._groups = number_groups(self._ranked)
        self._sizes = np.bincount(self._groups)
        self._depths = np.full(len(self._sizes), candidates_looked_at(spec))
        self._pool = merged.sampled.lowest(sampled_images(spec.top_k))
        self._images: dict[tuple[int, int], tuple[int | None, bytes]] = {}
        self._scanned = Scores.empty()
        self._places = PLACES_SCHEMA.empty_table()
        self.exact = Scores.empty()
        """What has been recomputed, each candidate once."""

    def wanted(self) -> Scores:
        """Return the candidates to recompute next, each once; none when all that matter are known."""
        if len(self.exact.row) and self._spec.distinct:
            self._look_deeper()
        drawn = self._drawn()
        # Whom recomputing could move over a band's edge is known after the first round.
        edges = Scores.empty() if len(self.exact.row) else drawn.at_edges
        candidates = concatenate([self._ranked.take(self._looked_at()), drawn.scores, edges])
        candidates = candidates.take(find(self.exact, candidates) < 0)
        # Of those that stand there several times, the last.
        return candidates.take(np.unique(find(candidates, candidates)))

    def add(self, scanned: Scores, exact: Scores, places: pa.Table, images: dict[int, pa.Table]) -> None:
        """Take in recomputed candidates.

        Args:
            scanned: candidates that `wanted` gave, in any order.
            exact: the same, recomputed.
            places: `PLACES_SCHEMA`, row for row.
            images: {shard: its images} (`IMAGES_SCHEMA`).
        """
        self._scanned = concatenate([self._scanned, scanned])
        self.exact = concatenate([self.exact, exact])
        self._places = pa.concat_tables([self._places, places])
        for shard, table in images.items():
            columns = (table[name].to_pylist() for name in ("row", "label", "hash"))
            self._images.update({(shard, row): (label, seen) for row, label, seen in zip(*columns, strict=True)})
        self._correct_pool(exact)

    def result(self) -> Selected:
        """Return the exemplars, once nothing is wanted any more."""
        ranking = self._rank_exactly()
        chosen: list[tuple[str, np.ndarray, np.ndarray]] = []
        for contest, sample in ((TOP, samples.TOP), (BOTTOM, samples.BOTTOM)):
            shown = (ranking.ranks <= self._spec.top_k) & (self._ranked.contest[ranking.order] == contest)
            chosen.append((sample, self._known(ranking.order[shown]), ranking.ranks[shown]))
        short = []
        for picked in self._distinct(ranking) if self._spec.distinct else ():
            chosen.append((samples.DISTINCT, picked.among, np.arange(1, len(picked.among) + 1)))
            if not picked.enough:
                first = np.searchsorted(self._groups, picked.group)
                short.append((int(self._ranked.series[first]), int(self._ranked.channel[first]), len(picked.among)))
        drawn = self._drawn()
        which = np.concatenate([*(among for _, among, _ in chosen), find(self.exact, drawn.scores)])
        ranks = np.concatenate([*(ranks for _, _, ranks in chosen), drawn.ranks]).astype(np.int32)
        names = [sample for sample, among, _ in chosen for _ in among] + drawn.samples
        place = np.array([samples.place_in_results(sample) for sample in names])
        duplicate_of = self._duplicates(which, place, ranks)
        scores = self.exact.take(which)
        order = np.lexsort((place, ranks, scores.channel, scores.series))
        return Selected(
            scores=scores.take(order),
            samples=[names[i] for i in order],
            ranks=ranks[order],
            duplicate_of=[duplicate_of[i] for i in order],
            places=self._places.take(which[order]),
            largest_error=float(np.abs(self._scanned.activation - self.exact.activation).max(initial=0.0)),
            unsettled=ranking.unsettled,
            short=short,
        )

    def candidates(self) -> Scores:
        """Return every channel's strongest and weakest candidates that were looked at, recomputed."""
        scanned = self._ranked.take(self._looked_at())
        return scanned._replace(activation=self.exact.activation[find(self.exact, scanned)])

    # The strongest and the weakest -------------------------------------------------------

    def _looked_at(self) -> np.ndarray:
        """Return the indices of the ranked candidates that are looked at."""
        return np.flatnonzero(self._scan_ranks <= self._depths[self._groups])

    def _known(self, ranked: np.ndarray) -> np.ndarray:
        """Return where ranked candidates stand among the recomputed ones."""
        return find(self.exact, self._ranked.take(ranked))

    def _rank_exactly(self) -> Ranking:
        looked_at = self._looked_at()
        scanned = self._ranked.take(looked_at)
        ranking = rank_exactly(scanned, self.candidates(), self._spec.top_k, candidates_looked_at(self._spec))
        return replace(ranking, order=looked_at[ranking.order])

    def _distinct(self, ranking: Ranking) -> Iterator[_Picked]:
        """Pick every channel's distinct exemplars."""
        strongest = self._ranked.contest[ranking.order] == TOP
        order, groups = ranking.order[strongest], self._groups[ranking.order[strongest]]
        among = self._known(order)
        for span in spans(groups):
            group, count = int(groups[span][0]), len(groups[span])
            all_kept = count == self._sizes[group]
            labels, hashes = zip(*(self._image(i) for i in among[span]), strict=True)
            # The weakest of the candidates are a margin, as for the plain ranking.
            usable = count - (0 if all_kept else CANDIDATE_MARGIN)
            picked = pick_distinct(hashes[:usable], labels[:usable], self._spec.top_k, self._spec.max_per_class)
            enough = len(picked) == self._spec.top_k or (all_kept and not self._parts_may_hold_more(group))
            yield _Picked(group, among[span][picked], enough)

    def _look_deeper(self) -> None:
        """Look at more candidates of the channels that lack distinct ones."""
        for picked in self._distinct(self._rank_exactly()):
            if not picked.enough:
                self._depths[picked.group] += self._spec.top_k

    def _parts_may_hold_more(self, group: int) -> bool:
        """Whether the data set has images beyond the candidates that the scan kept of a channel."""
        return self._sizes[group] >= candidates_kept(self._spec)[TOP]

    def _image(self, known: int) -> tuple[int | None, bytes]:
        """Return label and perceptual hash of a recomputed candidate's image."""
        return self._images[int(self.exact.shard[known]), int(self.exact.row[known])]

    def _duplicates(self, which: np.ndarray, place: np.ndarray, ranks: np.ndarray) -> list[int | None]:
        """Return each exemplar's `duplicate_of`."""
        series, channel = self.exact.series[which], self.exact.channel[which]
        order = np.lexsort((ranks, place, channel, series))
        result: list[int | None] = [None] * len(which)
        for span in spans(series[order], channel[order], place[order]):
            group = order[span]
            near = near_duplicates_of([self._image(which[i])[1] for i in group])
            for i, first in zip(group, near, strict=True):
                result[i] = None if first is None else int(ranks[group[first]])
        return result

    # Samples drawn by priority -----------------------------------------------------------

    def _drawn(self) -> _Drawn:
        """Draw from what is known now."""
        drawn, edges = [Scores.empty()], [Scores.empty()]
        names: list[str] = []
        ranks = [np.empty(0, np.int64)]
        for series, ((layer, _), activations) in enumerate(zip(self._pairs, self._pool.activations, strict=True)):
            of_series = list(draw(activations, self._spec.drawn_samples, self._spec.top_k))
            names += [one.sample for one in of_series for _ in one.images]
            ranks += [np.arange(1, len(one.images) + 1) for one in of_series]
            drawn.append(self._of_pool(series, layer, [(one.channel, one.images) for one in of_series]))
            edges.append(self._of_pool(series, layer, [(one.channel, one.at_edges) for one in of_series]))
        return _Drawn(names, np.concatenate(ranks), concatenate(drawn), concatenate(edges))

    def _of_pool(self, series: int, layer: Layer, wanted: list[tuple[int, np.ndarray]]) -> Scores:
        """Return images of the pool as scores: [(channel's place, indices)] one after another."""
        images = np.concatenate([np.empty(0, np.int64), *(images for _, images in wanted)])
        place = np.repeat([channel for channel, _ in wanted], [len(images) for _, images in wanted]).astype(np.int64)
        return Scores(
            series=np.full(len(images), series, np.int32),
            contest=np.full(len(images), TOP, np.int8),
            label=np.full(len(images), NO_LABEL, np.int64),
            channel=np.array(layer.channels, np.int32)[place],
            activation=self._pool.activations[series][images, place],
            shard=self._pool.shard[images],
            row=self._pool.row[images],
        )

    def _correct_pool(self, exact: Scores) -> None:
        """Put recomputed activations in the place of the scan's."""
        image = {(int(s), int(r)): i for i, (s, r) in enumerate(zip(self._pool.shard, self._pool.row, strict=True))}
        at = np.array([image.get((int(s), int(r)), -1) for s, r in zip(exact.shard, exact.row, strict=True)], np.int64)
        for series, ((layer, _), activations) in enumerate(zip(self._pairs, self._pool.activations, strict=True)):
            which = np.flatnonzero((at >= 0) & (exact.series == series))
            activations[at[which], np.searchsorted(layer.channels, exact.channel[which])] = exact.activation[which]


@dataclass(frozen=True)
class Ranking:
    """Candidates under their recomputed activations, and which top Ks are beyond doubt."""

    order: np.ndarray
    """int64: where they stand among the candidates, by (series, contest, channel, rank)."""
    ranks: np.ndarray
    """int32, from 1; as long as `order`."""
    unsettled: list[tuple[int, int, str]]
    """(series, channel, sample) whose K-th exemplar is not clear of the images that were dropped."""


def rank_exactly(scanned: Scores, exact: Scores, top_k: int, looked_at: int) -> Ranking:
    """Rank candidates by their recomputed activations.

    A channel is settled if no image outside its candidates can belong to its top K: there
    are none outside, or the best of them (at most the weakest candidate's scanned
    activation, plus the largest error seen in the channel) stays below the K-th.

    Args:
        scanned: the candidates with the scan's activations, sorted.
        exact: the same candidates in the same order, recomputed.
        top_k: how many are exemplars.
        looked_at: how many candidates a channel has if there may be images outside them.
    """
    group = number_groups(scanned)
    count = np.bincount(group)
    firsts = np.searchsorted(group, np.arange(len(count)))
    error = np.abs(scanned.activation.astype(np.float64) - exact.activation)
    worst_error = np.zeros(len(count))
    np.maximum.at(worst_error, group, error)
    weakest_scanned = np.full(len(count), np.inf)
    np.minimum.at(weakest_scanned, group, strength(scanned))

    order, ranks = rank(exact)
    shown = order[ranks <= top_k]
    kth = np.full(len(count), np.inf)
    np.minimum.at(kth, group[shown], strength(exact)[shown])

    # Without any error, the scan's order is the exact order, ties included.
    doubtful = (count >= looked_at) & (worst_error > 0) & (weakest_scanned + worst_error >= kth)
    names = {TOP: samples.TOP, BOTTOM: samples.BOTTOM}
    unsettled = [
        (int(scanned.series[i]), int(scanned.channel[i]), names[int(scanned.contest[i])]) for i in firsts[doubtful]
    ]
    return Ranking(order, ranks, unsettled)
