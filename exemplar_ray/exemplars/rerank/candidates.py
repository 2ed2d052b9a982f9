"""The merged candidates of a run, ranked as the scan saw them, channel by channel. Numpy only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.rerank.near_zero import NearZero
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import TOP, Scores, concatenate, find, number_groups, rank

Pair = tuple[int, int]
"""(readout, channel)"""


class ScannedChannels:
    """What the scan knows of every channel over all images, beside its candidates.

    `finite` is int64 [channels] for each readout: how many images gave a finite number. `ranges` is float32
    [channels] for each readout: the largest magnitude, 0 where there is none. `scored` is how many images were scored.
    `rescanned` are the pairs that an exact scan has told more of.
    """

    def __init__(self, spec: ExemplarsSpec, merged: Part, scored: int) -> None:
        moments = merged.moments
        self.readouts = spec.readouts
        self.screened = spec.screened
        self.finite = [tally.images.copy() for tally in moments]
        ranges = [np.maximum(np.abs(tally.minimum), np.abs(tally.maximum)) for tally in moments]
        self.ranges = [np.where(tally.images > 0, one, 0) for one, tally in zip(ranges, moments, strict=True)]
        self.scored = scored
        self.rescanned: set[Pair] = set()

    def index(self, pair: Pair) -> int:
        """Return which of its readout's wanted channels a pair's channel is."""
        return int(np.searchsorted(self.readouts[pair[0]].layer.channels, pair[1]))

    def rescan(self, finite: dict[Pair, int]) -> None:
        """Take in what an exact scan says: how many images gave each of its pairs a finite number."""
        self.rescanned.update(finite)
        for pair, images in finite.items():
            self.finite[pair[0]][self.index(pair)] = images


@dataclass(frozen=True)
class RankedCandidates:
    """All candidates, ranked as the scan saw them, in groups: a channel's strongest, or its weakest."""

    scores: Scores
    """[candidates], sorted."""
    scan_ranks: np.ndarray
    """int32 [candidates], from 1 within a group."""
    group_of: np.ndarray
    """int64 [candidates]"""
    from_near_zero: np.ndarray
    """bool [candidates]: scanned as 0, and known only as near to more. They stand behind a group's other candidates,
    and `sizes` and depths do not count them: `NearZero` tells of these."""
    sizes: np.ndarray
    """int64 [groups]"""
    n_active: np.ndarray
    """int64 [groups]: candidates that excite the channel, as the scan saw it."""
    firsts: np.ndarray
    """int64 [groups]: where each group begins."""
    ranges: np.ndarray
    """float64 [groups]: see `ScannedChannels`."""
    screened: np.ndarray
    """bool [groups]: scanned otherwise than by the reference."""
    has_pre_relu: np.ndarray
    """bool [groups]: a screened channel's strongest, of which it is known how near images at 0 come to more."""
    nan_in_scan: np.ndarray
    """bool [groups]: screening gave some images no finite number, so that any of them might be the strongest."""
    truncated: np.ndarray
    """bool [groups]: there are images beyond the last candidate."""

    def pair(self, group: int | np.integer) -> Pair:
        """Return which (readout, channel) a group ranks."""
        first = self.firsts[group]
        return int(self.scores.readout[first]), int(self.scores.channel[first])

    @property
    def error_class(self) -> np.ndarray:
        """Return `certainty.Groups.error_class`: errors of an exact scan's channels are not those of the others."""
        return 2 * self.scores.readout[self.firsts] + self.screened


def rank_candidates(
    channels: ScannedChannels, candidates: Scores, near_zero: NearZero, left_out: Scores
) -> RankedCandidates:
    """Rank candidates as the scan saw them.

    Args:
        candidates: the strongest and the weakest.
        near_zero: images at 0 that come near to more; they are ranked behind the others, as these go down to a 0.
        left_out: candidates that came out as no number when they were recomputed.
    """
    nearest = scanned_at_zero(near_zero)
    nearest = nearest.take(~of_pairs(nearest, channels.rescanned))
    nearest = nearest.take(find(candidates.take(candidates.ranking == TOP), nearest) < 0)
    everything = concatenate([candidates, nearest])
    order, scan_ranks = rank(everything)
    from_near_zero = order >= len(candidates.row)
    scores = everything.take(order)
    group_of = number_groups(scores)
    sizes = np.bincount(group_of[~from_near_zero])
    firsts = np.searchsorted(group_of, np.arange(len(sizes)))
    pairs = list(zip(scores.readout[firsts].tolist(), scores.channel[firsts].tolist(), strict=True))
    places = [(readout, channels.index((readout, channel))) for readout, channel in pairs]
    finite = np.array([channels.finite[readout][place] for readout, place in places], np.int64)
    rescanned = np.array([pair in channels.rescanned for pair in pairs], bool)
    screened = ~rescanned if channels.screened else np.zeros(len(sizes), bool)
    is_top = scores.ranking[firsts] == TOP
    gone = Counter(zip(left_out.readout.tolist(), left_out.ranking.tolist(), left_out.channel.tolist(), strict=True))
    named = zip(pairs, scores.ranking[firsts].tolist(), strict=True)
    known = np.array([gone[readout, ranking, channel] for (readout, channel), ranking in named], np.int64)
    return RankedCandidates(
        scores=scores,
        scan_ranks=scan_ranks,
        group_of=group_of,
        from_near_zero=from_near_zero,
        sizes=sizes,
        n_active=np.bincount(group_of[scores.activation > 0], minlength=len(sizes)),
        firsts=firsts,
        ranges=np.array([channels.ranges[readout][place] for readout, place in places], np.float64),
        screened=screened,
        has_pre_relu=screened & is_top & np.array([pair in near_zero for pair in pairs], bool),
        nan_in_scan=screened & (finite < channels.scored),
        truncated=finite > sizes + known,
    )


def scanned_at_zero(near_zero: NearZero) -> Scores:
    """Return the nearest in the same order, as the scan saw them after the ReLU: at 0, among the strongest."""
    nearest = near_zero.nearest
    return nearest._replace(ranking=np.full_like(nearest.ranking, TOP), activation=np.zeros_like(nearest.activation))


def of_pairs(scores: Scores, pairs: set[Pair]) -> np.ndarray:
    """Return a mask of the scores that are of some (readout, channel) pairs."""
    each = zip(scores.readout.tolist(), scores.channel.tolist(), strict=True)
    return np.fromiter((pair in pairs for pair in each), bool, len(scores.row))
