"""From merged parts to exemplars: which candidates to recompute, and what they then turn out to be.

Back and forth: `wanted` says what has to be recomputed next, `add` takes it in, until nothing is
wanted any more. One round does for the strongest and the weakest; more are needed where
a scan's error leaves doubt who is in, where near-duplicates are skipped and candidates run short, or where
recomputing moves an image over the edge of a percentile's band. Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from exemplar_ray import samples
from exemplar_ray.below_zero import BelowZero
from exemplar_ray.near_duplicates import near_duplicates_of, pick_distinct
from exemplar_ray.parts import Part, layers_and_statistics
from exemplar_ray.samples import draw, sampled_images
from exemplar_ray.spec import Layer, ResolvedSpec
from exemplar_ray.standing import Groups, Standing, Usual, stand
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

# So many candidates beyond K, but no more than so many, are recomputed along with others of their images.
_COMPANIONS_A_RANK = 4
_MOST_COMPANIONS = 100

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


class Tail(NamedTuple):
    """One end of a channel's distribution, as far as it is known without a gap."""

    strengths: np.ndarray
    """float32, ascending: of the strongest images, or of the weakest, negated."""
    beyond: float
    """Every stronger image stands among them: -infinity if they are all."""


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
    certainty: list[dict[str, np.ndarray]]
    """For each (layer, statistic) pair, by channel: `settled` (bool), whether the top K is beyond doubt;
    `scan_error` (float64), the largest difference seen between a scanned and a recomputed activation; `margin`
    (float64), how far the K-th exemplar is above what the scan saw of the strongest image that was
    not recomputed, infinite if all were."""
    tails: dict[tuple[int, int, int], Tail]
    """{(series, contest, channel): what is known of its strongest or weakest}."""
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
    """The search for the exemplars among merged candidates.

    Args:
        merged: candidates, for every channel all the images that the scan saw above the weakest of them.
        scored: how many images were scored.
    """

    def __init__(self, spec: ResolvedSpec, merged: Part, scored: int) -> None:
        self._spec = spec
        self._pairs = layers_and_statistics(spec)
        moments = merged.tallies["moments"]
        self._finite = [tally.images.copy() for tally in moments]
        self._ranges = [np.maximum(np.abs(tally.minimum), np.abs(tally.maximum)) for tally in moments]
        self._scored = scored
        self._rescanned: set[tuple[int, int]] = set()
        self._usual: Usual = {}
        scores = merged.scores.take(merged.scores.contest != OF_CLASS)
        before_relu = scores.series >= len(self._pairs)
        candidates, nearest = scores.take(~before_relu), scores.take(before_relu)
        # Only where candidates go down to 0: elsewhere some that came nearer were not kept.
        down_to_0 = candidates.take((candidates.contest == TOP) & (candidates.activation == 0))
        channels = set(zip((down_to_0.series + len(self._pairs)).tolist(), down_to_0.channel.tolist(), strict=True))
        self._below_zero = BelowZero(nearest.take(_of_channels(nearest, channels)), spec.top_k)
        nearest = self._below_zero.nearest
        # The same in the same order, as they are after the ReLU.
        self._nearest_at_0 = nearest._replace(
            series=nearest.series - len(self._pairs), activation=np.zeros_like(nearest.activation)
        )
        self._rank_candidates(candidates)
        self._below_zero.look_deeper(self._fire_on_fewer_than_k(), Scores.empty())
        self._pool = merged.sampled.lowest(sampled_images(spec.top_k))
        self._images: dict[tuple[int, int], tuple[int | None, bytes]] = {}
        self._places = PLACES_SCHEMA.empty_table()
        self._largest_error = 0.0
        self.exact = Scores.empty()
        """What has been recomputed, each candidate once."""

    def wanted(self) -> Scores:
        """Return the candidates to recompute next, each once; none when all that matter are known."""
        drawn = self._drawn()
        # Whom recomputing could move over a band's edge is known after the first round.
        edges = Scores.empty() if len(self.exact.row) or self._spec.screened else drawn.at_edges
        while True:
            below_zero = self._below_zero.nearest.take(self._below_zero.looked_at)
            candidates = concatenate([self._ranked.take(self._looked_at()), below_zero, drawn.scores, edges])
            candidates = candidates.take(find(self.exact, candidates) < 0)
            if len(candidates.row) or not self._look_deeper():
                if self._spec.screened or self._spec.distinct:
                    candidates = concatenate([candidates, self._companions(candidates)])
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
        error = np.abs(scanned.activation - exact.activation)[exact.series < len(self._pairs)].max(initial=0.0)
        self._largest_error = max(self._largest_error, float(error))
        self.exact = concatenate([self.exact, exact])
        self._places = pa.concat_tables([self._places, places])
        for shard, table in images.items():
            columns = (table[name].to_pylist() for name in ("row", "label", "hash"))
            self._images.update({(shard, row): (label, seen) for row, label, seen in zip(*columns, strict=True)})
        # What screening saw of an image decides what is drawn: all images were seen alike.
        if not self._spec.screened:
            self._correct_pool(exact)

    def unsettled(self) -> list[tuple[int, int]]:
        """Return the (series, channel) pairs whose strongest or weakest are in doubt, each once."""
        return sorted({(series, channel) for series, channel, _ in self._unsettled(self._standing())})

    def replace(self, channels: list[tuple[int, int]], scores: Scores, finite: list[int]) -> None:
        """Go on with other candidates for some channels: those of an exact scan in the place of a screened one's.

        Args:
            channels: (series, channel).
            scores: all their candidates.
            finite: how many images gave each of these channels a finite number.
        """
        # The channels that stay are judged as they were: those that go no longer tell of the layer's errors.
        self._usual = self._standing().usual
        self._rescanned.update(channels)
        for (series, channel), images in zip(channels, finite, strict=True):
            self._finite[series][np.searchsorted(self._pairs[series][0].channels, channel)] = images
        of_others = ~_of_channels(self._ranked, set(channels)) & ~self._added
        self._rank_candidates(concatenate([self._ranked.take(of_others), scores]))

    def result(self) -> Selected:
        """Return the exemplars, once nothing is wanted any more."""
        standing = self._standing()
        chosen: list[tuple[str, np.ndarray, np.ndarray]] = []
        for contest, sample in ((TOP, samples.TOP), (BOTTOM, samples.BOTTOM)):
            shown = (standing.ranks <= self._spec.top_k) & (self._ranked.contest[standing.order] == contest)
            chosen.append((sample, self._known(standing.order[shown]), standing.ranks[shown]))
        short = []
        for picked in self._distinct(standing) if self._spec.distinct else ():
            chosen.append((samples.DISTINCT, picked.among, np.arange(1, len(picked.among) + 1)))
            if not picked.enough:
                first = self._firsts[picked.group]
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
            largest_error=self._largest_error,
            unsettled=self._unsettled(standing),
            certainty=self._certainty(standing),
            tails=self._tails(standing),
            short=short,
        )

    # The strongest and the weakest -------------------------------------------------------

    def _rank_candidates(self, candidates: Scores) -> None:
        self._stood: tuple[tuple[int, int, int], Standing] | None = None
        # Those that the scan saw at 0 but near to more: behind all other candidates, as these go down to a 0.
        at_0 = self._nearest_at_0.take(~_of_channels(self._nearest_at_0, self._rescanned))
        at_0 = at_0.take(find(candidates.take(candidates.contest == TOP), at_0) < 0)
        order, self._scan_ranks = rank(concatenate([candidates, at_0]))
        self._added = order >= len(candidates.row)
        self._ranked = concatenate([candidates, at_0]).take(order)
        self._groups = number_groups(self._ranked)
        # Of these each group's size and depth tell, of the others `BelowZero`.
        self._sizes = np.bincount(self._groups[~self._added])
        self._fire = np.bincount(self._groups[self._ranked.activation > 0], minlength=len(self._sizes))
        self._firsts = np.searchsorted(self._groups, np.arange(len(self._sizes)))
        self._depths = np.minimum(self._sizes, self._spec.top_k)
        # Images whose candidates were not kept; with screening, those that it gave no finite number, too.
        images = np.empty(len(self._sizes), np.int64)
        self._screened, self._judged = np.zeros((2, len(self._sizes)), bool)
        self._scales = np.zeros(len(self._sizes))
        for group, first in enumerate(self._firsts):
            series, channel = int(self._ranked.series[first]), int(self._ranked.channel[first])
            place = np.searchsorted(self._pairs[series][0].channels, channel)
            images[group], self._scales[group] = self._finite[series][place], self._ranges[series][place]
            self._screened[group] = self._spec.screened and (series, channel) not in self._rescanned
            judged = self._screened[group] and self._ranked.contest[first] == TOP
            self._judged[group] = judged and self._before_relu(group) in self._below_zero
        # The errors of an exact scan's channels are not those of the others.
        self._layers = 2 * self._ranked.series[self._firsts] + self._screened
        self._lost = self._screened & (images < self._scored)
        self._more = images > self._sizes

    def _before_relu(self, group: int) -> tuple[int, int]:
        """Return the series and channel of a group's values before the ReLU."""
        first = self._firsts[group]
        return int(self._ranked.series[first]) + len(self._pairs), int(self._ranked.channel[first])

    def _fire_on_fewer_than_k(self) -> list[tuple[int, int]]:
        """Return the channels, before the ReLU, of which some of the strongest are at 0: who is above matters there."""
        few = np.flatnonzero(self._judged & (self._fire < self._spec.top_k))
        return [self._before_relu(group) for group in few]

    def _down_to_zeros(self) -> np.ndarray:
        """Return how deep each group has to be looked into for as many of the first images at 0 as could be exemplars.

        Whatever the scan took for more than 0, these are then the first of all that are at 0.
        """
        return self._fire + self._spec.top_k

    def _reaches_below_zero(self) -> np.ndarray:
        """Return `Groups.below_zero`."""
        reaches = self._below_zero.reaches(self.exact)
        result = np.full(len(self._sizes), np.nan)
        for group in np.flatnonzero(self._judged):
            result[group] = reaches[self._before_relu(group)]
        return np.where(self._judged & (self._depths < self._down_to_zeros()), np.inf, result)

    def _looked_at(self) -> np.ndarray:
        """Return the indices of the ranked candidates that are looked at."""
        looked_at = (self._scan_ranks <= self._depths[self._groups]) & ~self._added
        nearest = self._nearest_at_0.take(self._below_zero.looked_at)
        at_0 = np.flatnonzero((self._ranked.activation == 0) & self._judged[self._groups])
        looked_at[at_0] |= find(nearest, self._ranked.take(at_0)) >= 0
        return np.flatnonzero(looked_at)

    def _companions(self, wanted: Scores) -> Scores:
        """Return what a later look may want of the same images: recomputing one gives all channels at once."""
        images = np.unique(_images(wanted))
        deep = self._spec.top_k + min(_COMPANIONS_A_RANK * self._spec.top_k, _MOST_COMPANIONS)
        near = np.flatnonzero((self._scan_ranks <= deep) & ~self._added)
        near = near[np.isin(_images(self._ranked.take(near)), images)]
        return self._ranked.take(near[self._known(near) < 0])

    def _known(self, ranked: np.ndarray) -> np.ndarray:
        """Return where ranked candidates stand among the recomputed ones."""
        return find(self.exact, self._ranked.take(ranked))

    def _recomputed(self, ranked: np.ndarray) -> Scores:
        """Return ranked candidates with their recomputed activations."""
        return self._ranked.take(ranked)._replace(activation=self.exact.activation[self._known(ranked)])

    def _standing(self) -> Standing:
        """Rank what has been looked at."""
        # Nothing changes but depths and what is recomputed, and either only grows.
        known = (len(self.exact.row), int(self._depths.sum()), len(self._below_zero.looked_at))
        if self._stood is None or self._stood[0] != known:
            self._stood = known, self._stand()
        return self._stood[1]

    def _stand(self) -> Standing:
        looked_at = self._looked_at()
        scanned = strength(self._ranked).astype(np.float64)
        # The first that was not looked at; or no more than the last, if more images were dropped.
        following = np.minimum(self._firsts + self._depths, self._firsts + self._sizes - 1)
        dropped = self._more | (self._depths < self._sizes)
        outside = np.where(self._lost, np.inf, np.where(dropped, scanned[following], -np.inf))
        exact = self._recomputed(looked_at).activation
        groups = Groups(outside, self._layers, self._scales, self._screened, self._reaches_below_zero())
        return stand(self._ranked, self._groups, looked_at, exact, self._spec.top_k, groups, self._usual)

    def _unsettled(self, standing: Standing) -> list[tuple[int, int, str]]:
        firsts = self._ranked.take(self._firsts[~standing.settled])
        names = {TOP: samples.TOP, BOTTOM: samples.BOTTOM}
        return [
            (int(series), int(channel), names[int(contest)])
            for series, channel, contest in zip(firsts.series, firsts.channel, firsts.contest, strict=True)
        ]

    def _certainty(self, standing: Standing) -> list[dict[str, np.ndarray]]:
        result = []
        for (layer, _), finite in zip(self._pairs, self._finite, strict=True):
            count = len(layer.channels)
            columns = {"settled": (finite == self._scored) | (not self._spec.screened)}
            result.append({**columns, "scan_error": np.zeros(count), "margin": np.full(count, np.inf)})
        values = {
            "settled": standing.settled,
            "scan_error": standing.seen_error,
            "margin": standing.kth - standing.outside,
        }
        for group in np.flatnonzero(self._ranked.contest[self._firsts] == TOP):
            series, channel = self._ranked.series[self._firsts[group]], self._ranked.channel[self._firsts[group]]
            place = np.searchsorted(self._pairs[series][0].channels, channel)
            for name, of_groups in values.items():
                result[series][name][place] = of_groups[group]
        return result

    def _tails(self, standing: Standing) -> dict[tuple[int, int, int], Tail]:
        strengths = strength(self._ranked).astype(np.float32)
        lasts = np.where(self._more, strengths[self._firsts + self._sizes - 1], -np.inf)
        # Of images that are level with the last exemplar, all are known if the shards kept weaker ones.
        level = np.where(lasts < standing.outside, np.nextafter(standing.level, -np.inf), standing.level)
        beyond = np.where(np.isnan(level), standing.reach, level)
        # Where the scan's order is the exact one, all that the shards kept is known.
        beyond = np.where(self._lost, np.inf, np.where(standing.in_order, lasts, beyond))
        known = standing.in_order[self._groups]
        tied = ~known & ~np.isnan(level)[self._groups] & (strengths == standing.outside[self._groups])
        strengths[tied] = standing.level[self._groups[tied]]
        strengths[standing.order] = strength(self._recomputed(standing.order))
        known[tied] = True
        known[standing.order] = True
        known = np.flatnonzero(known & (standing.in_order[self._groups] | (strengths > beyond[self._groups])))
        ends = np.searchsorted(self._groups[known], np.arange(len(self._sizes) + 1))
        firsts = self._ranked.take(self._firsts)
        keys = zip(firsts.series.tolist(), firsts.contest.tolist(), firsts.channel.tolist(), strict=True)
        return {
            key: Tail(np.sort(strengths[known[ends[group] : ends[group + 1]]]), float(beyond[group]))
            for group, key in enumerate(keys)
        }

    def _look_deeper(self) -> bool:
        """Look at more candidates of the channels that are not settled or lack distinct ones; false if there are none.

        What decides is what was seen so far, so the next look may show that a deeper one is needed.
        """
        before = self._depths
        standing = self._standing()
        # All that an error may lift over the K-th: candidates are sorted, so they are the first so many.
        within = strength(self._ranked) + standing.allowance[self._groups] >= standing.kth[self._groups]
        needed = np.maximum(np.bincount(self._groups, within, len(before)).astype(np.int64), before + 1)
        # Of images at 0 more are no help: they are ties, and those above 0 are found by what they were before the ReLU.
        doubtful = self._judged & ~standing.settled & ~self._lost
        zeros = doubtful & (needed > self._fire)
        needed = np.where(zeros, np.maximum(np.minimum(needed, self._down_to_zeros()), before), needed)
        # Where screening gave no number at all, no depth helps.
        self._depths = np.minimum(self._sizes, np.where(standing.settled | self._lost, before, needed))
        for picked in self._distinct(standing) if self._spec.distinct else ():
            if not picked.enough:
                # Twice as deep each time: every look is a round of tasks over the shards.
                deeper = max(self._depths[picked.group], 2 * before[picked.group])
                self._depths[picked.group] = min(self._sizes[picked.group], deeper)
        below_zero = [self._before_relu(group) for group in np.flatnonzero(zeros)]
        return self._below_zero.look_deeper(below_zero, self.exact) or bool((self._depths > before).any())

    def _distinct(self, standing: Standing) -> Iterator[_Picked]:
        """Pick every channel's distinct exemplars."""
        strongest = self._ranked.contest[standing.order] == TOP
        order, groups = standing.order[strongest], self._groups[standing.order[strongest]]
        among = self._known(order)
        # An image outside might stand before those that it reaches.
        sure = standing.in_order | np.isneginf(standing.outside)
        activation = self.exact.activation[among]
        clear = sure[groups] | (activation > standing.reach[groups]) | (activation >= standing.level[groups])
        # Between images that are at 0 though the scan saw them above it, or near to it, others may be missing.
        last = self._ranked.take(self._firsts + self._depths - 1)
        shard, row = self.exact.shard[among], self.exact.row[among]
        behind = (shard > last.shard[groups]) | ((shard == last.shard[groups]) & (row > last.row[groups]))
        clear &= ~((activation == 0) & behind & self._judged[groups] & ~np.isneginf(standing.outside[groups]))
        for span in spans(groups):
            group, usable = int(groups[span][0]), among[span][clear[span]]
            labels, hashes = zip(*(self._image(i) for i in usable), strict=True) if len(usable) else ((), ())
            picked = pick_distinct(hashes, labels, self._spec.top_k, self._spec.max_per_class)
            yield _Picked(
                group, usable[picked], len(picked) == self._spec.top_k or np.isneginf(standing.outside[group])
            )

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


def _images(scores: Scores) -> np.ndarray:
    """Return int64 [n]: equal for scores of the same image."""
    return scores.shard.astype(np.int64) << 32 | scores.row


def _of_channels(scores: Scores, channels: set[tuple[int, int]]) -> np.ndarray:
    """Return a mask of the scores that are of some (series, channel) pairs."""
    pairs = zip(scores.series.tolist(), scores.channel.tolist(), strict=True)
    return np.fromiter((pair in channels for pair in pairs), bool, len(scores.row))
