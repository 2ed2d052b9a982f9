"""The search for every channel's strongest and weakest images: how deep to look, who is in, how sure. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from exemplar_ray.exemplars import sample_names
from exemplar_ray.exemplars.rerank.candidates import (
    Pair,
    ScannedChannels,
    of_pairs,
    rank_candidates,
    scanned_at_zero,
)
from exemplar_ray.exemplars.rerank.certainty import (
    BoundedRanking,
    Groups,
    Recomputed,
    TypicalErrors,
    rank_with_bounds,
)
from exemplar_ray.exemplars.rerank.near_zero import NearZero
from exemplar_ray.exemplars.rerank.recomputed import RecomputedScores
from exemplar_ray.exemplars.rerank.selected import Certainty, Tail, TailKey, Unsettled
from exemplar_ray.exemplars.topk import BOTTOM, NEAR_ZERO, TOP, Scores, concatenate, find, image_numbers, strength

# Recomputing an image gives all its channels at once. So candidates a few ranks beyond K are recomputed along with
# others of their images: so many times K, but no more than so many.
_COMPANIONS_A_RANK = 4
_MOST_COMPANIONS = 100

_SAMPLES = {TOP: sample_names.TOP, BOTTOM: sample_names.BOTTOM}


class Shown(NamedTuple):
    """The exemplars of one sample: parallel arrays."""

    sample: str
    exact: np.ndarray
    """int64: indices into the recomputed scores."""
    ranks: np.ndarray


class Extremes:
    """Ranked candidates, and how deep each group has been looked into.

    `candidates` are the ranked ones, `depths` int64 [groups]: of each group the first so many are looked at.

    Args:
        channels: what the scan knows of every channel.
        scores: candidates for the strongest, the weakest, and those near to 0.
        top_k: how many are exemplars.
        recomputed: what gather has recomputed; it grows meanwhile.
    """

    def __init__(self, channels: ScannedChannels, scores: Scores, top_k: int, recomputed: RecomputedScores) -> None:
        self._channels = channels
        self._top_k = top_k
        self._recomputed = recomputed
        self._typical_errors: TypicalErrors = {}
        near_zero = scores.ranking == NEAR_ZERO
        candidates, nearest = scores.take(~near_zero), scores.take(near_zero)
        # Only where candidates go down to 0: elsewhere some that came nearer were not kept.
        down_to_0 = candidates.take((candidates.ranking == TOP) & (candidates.activation == 0))
        pairs = set(zip(down_to_0.readout.tolist(), down_to_0.channel.tolist(), strict=True))
        self._left_out = Scores.empty()
        self._begin(candidates, nearest.take(of_pairs(nearest, pairs)))

    def _begin(self, candidates: Scores, nearest: Scores) -> None:
        self._near_zero = NearZero(nearest, self._top_k)
        self._rank(candidates)
        # Where some of the strongest are at 0, it matters who is above.
        few = np.flatnonzero(self.candidates.has_pre_relu & (self.candidates.n_active < self._top_k))
        self._near_zero.look_deeper([self.candidates.pair(group) for group in few], Scores.empty())

    def leave_out(self, not_finite: Scores) -> None:
        """Go on without some candidates, which came out as no number when they were recomputed."""
        self._left_out = concatenate([self._left_out, not_finite])
        ranked, nearest = self.candidates, self._near_zero.nearest
        self._begin(ranked.scores.take(~ranked.from_near_zero), nearest.take(find(self._left_out, nearest) < 0))

    def _rank(self, candidates: Scores) -> None:
        is_left = find(self._left_out, candidates) >= 0
        self.candidates = rank_candidates(
            self._channels, candidates.take(~is_left), self._near_zero, candidates.take(is_left)
        )
        self.depths = np.minimum(self.candidates.sizes, self._top_k)
        self._bounded: tuple[tuple[int, int, int], BoundedRanking] | None = None

    def replace(self, scores: Scores, finite: dict[Pair, int]) -> None:
        """Go on with other candidates for some channels: those of an exact scan in the place of a screened one's.

        Args:
            scores: all their candidates.
            finite: {pair: how many images gave it a finite number}.
        """
        # The channels that stay are judged as they were: those that go no longer tell of the layer's errors.
        self._typical_errors = self.bounded().typical_errors
        self._channels.rescan(finite)
        ranked = self.candidates
        of_others = ~of_pairs(ranked.scores, set(finite)) & ~ranked.from_near_zero
        self._rank(concatenate([ranked.scores.take(of_others), scores]))

    def wanted(self) -> Scores:
        """Return all candidates that are looked at now."""
        near_zero = self._near_zero.nearest.take(self._near_zero.looked_at)
        return concatenate([self.candidates.scores.take(self._looked_at()), near_zero])

    def companions(self, wanted: Scores) -> Scores:
        """Return what a later look may want of the same images, and was not recomputed yet."""
        ranked = self.candidates
        deep = self._top_k + min(_COMPANIONS_A_RANK * self._top_k, _MOST_COMPANIONS)
        near = np.flatnonzero((ranked.scan_ranks <= deep) & ~ranked.from_near_zero)
        near = near[np.isin(image_numbers(ranked.scores.take(near)), np.unique(image_numbers(wanted)))]
        return ranked.scores.take(near[self.find(near) < 0])

    def find(self, positions: np.ndarray) -> np.ndarray:
        """Return where candidates stand among the recomputed scores; -1 for those that were not recomputed."""
        return self._recomputed.find(self.candidates.scores.take(positions))

    def _exact(self, positions: np.ndarray) -> Scores:
        """Return candidates, ranked for what they are ranked for here, with their recomputed activations."""
        activation = self._recomputed.exact.activation[self.find(positions)]
        return self.candidates.scores.take(positions)._replace(activation=activation)

    def _looked_at(self) -> np.ndarray:
        """Return the positions of the candidates that are looked at, ascending."""
        ranked = self.candidates
        looked_at = (ranked.scan_ranks <= self.depths[ranked.group_of]) & ~ranked.from_near_zero
        nearest = scanned_at_zero(self._near_zero).take(self._near_zero.looked_at)
        at_0 = np.flatnonzero((ranked.scores.activation == 0) & ranked.has_pre_relu[ranked.group_of])
        looked_at[at_0] |= find(nearest, ranked.scores.take(at_0)) >= 0
        return np.flatnonzero(looked_at)

    def bounded(self) -> BoundedRanking:
        """Rank what is looked at, all of which must have been recomputed."""
        # Nothing changes but depths and what is recomputed, and either only grows.
        version = (len(self._recomputed), int(self.depths.sum()), len(self._near_zero.looked_at))
        if self._bounded is None or self._bounded[0] != version:
            self._bounded = version, self._rank_with_bounds()
        return self._bounded[1]

    def _rank_with_bounds(self) -> BoundedRanking:
        ranked, positions = self.candidates, self._looked_at()
        scanned = strength(ranked.scores).astype(np.float64)
        # The first that was not looked at; or no more than the last, if more images were dropped.
        following = np.minimum(ranked.firsts + self.depths, ranked.firsts + ranked.sizes - 1)
        dropped = ranked.truncated | (self.depths < ranked.sizes)
        outside = np.where(ranked.nan_in_scan, np.inf, np.where(dropped, scanned[following], -np.inf))
        groups = Groups(outside, ranked.error_class, ranked.ranges, ranked.screened, self._pre_relu_bound())
        recomputed = Recomputed(
            ranked.scores.take(positions), ranked.group_of[positions], self._exact(positions).activation
        )
        return rank_with_bounds(recomputed, positions, self._top_k, groups, self._typical_errors)

    def _pre_relu_bound(self) -> np.ndarray:
        """Return `certainty.Groups.pre_relu_bound`."""
        bounds = self._near_zero.upper_bounds(self._recomputed.exact)
        ranked = self.candidates
        result = np.full(len(ranked.sizes), np.nan)
        for group in np.flatnonzero(ranked.has_pre_relu):
            result[group] = bounds[ranked.pair(group)]
        return np.where(ranked.has_pre_relu & (self.depths < self._down_to_zeros()), np.inf, result)

    def _down_to_zeros(self) -> np.ndarray:
        """Return how deep each group has to be looked into for as many of the first images at 0 as could be exemplars.

        Whatever the scan took for more than 0, these are then the first of all that are at 0.
        """
        return self.candidates.n_active + self._top_k

    def look_deeper(self, lacking: Callable[[BoundedRanking], Iterable[int]]) -> bool:
        """Look at more candidates of the channels that are not settled; false if there are none.

        What decides is what was seen so far, so the next look may show that a deeper one is needed.

        Args:
            lacking: says, once the doubtful ones are deeper, which groups need more candidates for another reason.
        """
        before, ranked, bounded = self.depths, self.candidates, self.bounded()
        # All that an error may lift over the K-th: candidates are sorted, so they are the first so many.
        lifted = strength(ranked.scores) + bounded.error_bound[ranked.group_of] >= bounded.kth[ranked.group_of]
        needed = np.maximum(np.bincount(ranked.group_of, lifted, len(before)).astype(np.int64), before + 1)
        # More images at 0 are no help: they are ties, and those above 0 are found by what they were before the ReLU.
        doubtful = ranked.has_pre_relu & ~bounded.settled & ~ranked.nan_in_scan
        at_zeros = doubtful & (needed > ranked.n_active)
        needed = np.where(at_zeros, np.maximum(np.minimum(needed, self._down_to_zeros()), before), needed)
        # Where screening gave no number at all, no depth helps.
        enough = bounded.settled | ranked.nan_in_scan
        self.depths = np.minimum(ranked.sizes, np.where(enough, before, needed))
        for group in lacking(bounded):
            # Twice as deep each time: every look is a round of tasks over the shards.
            deeper = max(self.depths[group], 2 * before[group])
            self.depths[group] = min(ranked.sizes[group], deeper)
        pairs = [ranked.pair(group) for group in np.flatnonzero(at_zeros)]
        return self._near_zero.look_deeper(pairs, self._recomputed.exact) or bool((self.depths > before).any())

    # What it comes to --------------------------------------------------------------------

    def shown(self) -> list[Shown]:
        """Return the strongest and the weakest."""
        bounded = self.bounded()
        ranking = self.candidates.scores.ranking[bounded.order]
        result = []
        for wanted, sample in _SAMPLES.items():
            here = (bounded.ranks <= self._top_k) & (ranking == wanted)
            result.append(Shown(sample, self.find(bounded.order[here]), bounded.ranks[here]))
        return result

    def unsettled(self) -> list[Unsettled]:
        """Return whose strongest or weakest are in doubt."""
        firsts = self.candidates.scores.take(self.candidates.firsts[~self.bounded().settled])
        doubts = [
            Unsettled(int(readout), int(channel), _SAMPLES[int(ranking)])
            for readout, channel, ranking in zip(firsts.readout, firsts.channel, firsts.ranking, strict=True)
        ]
        return doubts + [Unsettled(*pair, sample_names.TOP) for pair in self._without_numbers()]

    def _without_numbers(self) -> list[Pair]:
        """Return the channels of which screening saw no number at all, as where a narrow type overflows."""
        channels = self._channels
        return [
            (number, channel)
            for number, (finite, readout) in enumerate(zip(channels.finite, channels.readouts, strict=True))
            for channel in np.array(readout.layer.channels)[finite == 0].tolist()
            if channels.screened and channels.scored and (number, channel) not in channels.rescanned
        ]

    def certainty(self) -> list[Certainty]:
        """Return how sure the top K of each readout's channels is."""
        channels, ranked, bounded = self._channels, self.candidates, self.bounded()
        result = []
        for finite in channels.finite:
            count = len(finite)
            settled = (finite == channels.scored) | (not channels.screened)
            result.append(Certainty(settled, np.zeros(count), np.full(count, np.inf)))
        for pair in channels.rescanned:
            result[pair[0]].settled[channels.index(pair)] = True
        for group in np.flatnonzero(ranked.scores.ranking[ranked.firsts] == TOP):
            pair = ranked.pair(group)
            of_readout, channel = result[pair[0]], channels.index(pair)
            of_readout.settled[channel] = bounded.settled[group]
            of_readout.scan_error[channel] = bounded.largest_error[group]
            of_readout.margin[channel] = bounded.kth[group] - bounded.strongest_outside[group]
        return result

    def tails(self) -> dict[TailKey, Tail]:
        """Return what is known of the ends of every channel's distribution."""
        ranked, bounded, group_of = self.candidates, self.bounded(), self.candidates.group_of
        strengths = strength(ranked.scores).astype(np.float32)
        lasts = np.where(ranked.truncated, strengths[ranked.firsts + ranked.sizes - 1], -np.inf)
        # All images that tie with the last exemplar are known if the shards kept weaker ones.
        below_tie = np.nextafter(bounded.tie_value, -np.inf)
        tie_value = np.where(lasts < bounded.strongest_outside, below_tie, bounded.tie_value)
        above = np.where(np.isnan(tie_value), bounded.upper_bound, tie_value)
        # Where the scan's order is the exact one, all that the shards kept is known.
        in_order = bounded.scan_order_is_exact
        above = np.where(ranked.nan_in_scan, np.inf, np.where(in_order, lasts, above))
        is_known = in_order[group_of]
        outside = strengths == bounded.strongest_outside[group_of]
        tied = ~is_known & ~np.isnan(tie_value)[group_of] & outside
        strengths[tied] = bounded.tie_value[group_of[tied]]
        strengths[bounded.order] = strength(self._exact(bounded.order))
        is_known[tied] = True
        is_known[bounded.order] = True
        without_gap = np.flatnonzero(is_known & (in_order[group_of] | (strengths > above[group_of])))
        ends = np.searchsorted(group_of[without_gap], np.arange(len(ranked.sizes) + 1))
        firsts = ranked.scores.take(ranked.firsts)
        keys = map(TailKey, firsts.readout.tolist(), firsts.ranking.tolist(), firsts.channel.tolist())
        return {
            key: Tail(np.sort(strengths[without_gap[ends[group] : ends[group + 1]]]), float(above[group]))
            for group, key in enumerate(keys)
        }
