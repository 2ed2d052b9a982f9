"""How sure a channel's ranking is: what was recomputed, held against what was not. Numpy only.

Screening computes all images fast and a few of them exactly. The few are the top K if no other image could be
among it: if the strongest other image, as the scan saw it, plus the error that the scan may have
made, stays below the K-th recomputed activation.

That error is estimated from the images that were recomputed. This is a heuristic and no proof: nothing less than
recomputing every image would be one. The constants were chosen on 800 ImageNet photographs, scanned in bfloat16 from
pixels that were a level off: maximum and mean of three layers of a trained network and of an untrained one. There all
3,004 channels came out with the exact top 10, and none was left in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exemplar_ray.exemplars.topk import Scores, rank, strength

# An image that was not recomputed is taken to be off by at most so many times the channel's error.
HEURISTIC_SAFETY = 3.0
# The channel's error is the largest seen. If few were seen, these may have been lucky. So it is no less than a typical
# one: as much of the channel's range as half of the layer's channels show. The range of a channel that hardly ever
# fires says nothing of what goes on before its ReLU. So it is no less, either, than what all but a tenth of the
# channels show.
_HEURISTIC_TYPICAL_SHARE = 0.5
_HEURISTIC_LEAST_ERROR = 0.1
# So many are not few. Then the weaker half of them tells, as errors grow with the activation, and what was not
# recomputed is weaker still.
_HEURISTIC_MANY = 50


class TypicalError(NamedTuple):
    """What errors a layer's channels show."""

    share: float
    """Of a channel's range."""
    least: float
    """In the units of activations."""


TypicalErrors = dict[int, TypicalError]
"""{`Groups.error_class`: what is typical there}"""


@dataclass(frozen=True)
class Groups:
    """What is ranked together: a channel's strongest, or its weakest. Arrays are [groups]."""

    strongest_outside: np.ndarray
    """float64: strength, as scanned, that no image outside the recomputed ones exceeds; -infinity if there is none."""
    error_class: np.ndarray
    """int64: equal numbers for groups whose errors are alike, as shares of their ranges."""
    ranges: np.ndarray
    """float64: the channel's range, in the units of activations."""
    screened: np.ndarray
    """bool: scanned otherwise than by the reference, but for rounding."""
    pre_relu_bound: np.ndarray
    """float64: what an image that was scanned as 0 may have come to before the ReLU, if it was not recomputed; NaN if
    that is not known."""


@dataclass(frozen=True)
class BoundedRanking:
    """The rankings of all groups of candidates; arrays are [groups] where nothing else is said."""

    order: np.ndarray
    """int64 [recomputed]: where the recomputed candidates stand among all, by group, then exact rank."""
    ranks: np.ndarray
    """int32 [recomputed]: exact ranks from 1."""
    largest_error: np.ndarray
    """float64: largest difference between a scanned and a recomputed activation."""
    error_bound: np.ndarray
    """float64: by how much an image outside may be stronger than it was scanned."""
    kth: np.ndarray
    """float64: strength of the K-th candidate; -infinity where there are fewer than K and may be more."""
    strongest_outside: np.ndarray
    """As in `Groups`."""
    tie_value: np.ndarray
    """float64: the strength of the images outside, where they are known to be ties of recomputed ones; else NaN."""
    scan_order_is_exact: np.ndarray
    """bool: without any error, the scan's order is the exact order, ties included; after screening only in
    channels that never fire, nor come near to it as far as is known."""
    typical_errors: TypicalErrors

    @property
    def upper_bound(self) -> np.ndarray:
        """Return the strength that an image outside may have if it were recomputed."""
        return self.strongest_outside + self.error_bound

    @property
    def settled(self) -> np.ndarray:
        """Return whether no image outside can belong to the top K."""
        by_order = np.isfinite(self.kth) & (self.scan_order_is_exact | (self.tie_value <= self.kth))
        return np.isneginf(self.strongest_outside) | by_order | (self.upper_bound < self.kth)


@dataclass(frozen=True)
class Recomputed:
    """The candidates that were recomputed, in the order of groups. Arrays are [recomputed]."""

    scanned: Scores
    group: np.ndarray
    """int64: which group each is ranked in."""
    exact: np.ndarray
    """float32: recomputed activations."""

    @property
    def exact_scores(self) -> Scores:
        """Return them with the recomputed activations."""
        return self.scanned._replace(activation=self.exact)


def rank_with_bounds(
    recomputed: Recomputed,
    positions: np.ndarray,
    top_k: int,
    groups: Groups,
    typical_errors: TypicalErrors | None = None,
) -> BoundedRanking:
    """Rank recomputed candidates and say how far they are from the others.

    Copies of an image, and images that do not excite a channel at all, have equal activations, and there may be
    any number of them. Where the images outside are equal to several that were recomputed, and these came out
    equal again, they are taken to do so, too. After screening that is not taken for granted, as a screened scan may
    take different images for equal ones. Then it counts only for images that were scanned as 0, and are known to be
    far enough below it before the ReLU.

    Args:
        recomputed: at least the first candidate of every group.
        positions: int64 [recomputed]: where they stand among all candidates.
        top_k: how many are exemplars.
        typical_errors: of layers where they are known; those of others are taken from these groups.
    """
    errors = _errors(recomputed, len(groups.ranges))
    order, ranks = rank(recomputed.exact_scores)
    typical = {**_typical_errors(errors.largest, groups), **(typical_errors or {})}
    return BoundedRanking(
        order=positions[order],
        ranks=ranks,
        largest_error=errors.largest,
        error_bound=_error_bound(errors, groups, typical),
        kth=_kth(recomputed, order[ranks <= top_k], top_k, groups),
        strongest_outside=groups.strongest_outside,
        tie_value=_tie_value(recomputed, groups),
        scan_order_is_exact=(errors.largest == 0)
        & (~groups.screened | ((groups.ranges == 0) & ~(groups.pre_relu_bound >= 0))),
        typical_errors=typical,
    )


class _Errors(NamedTuple):
    """How far the scan was off; arrays are [groups]."""

    largest: np.ndarray
    """float64"""
    largest_of_weaker: np.ndarray
    """float64: among the weaker half of those that excite the channel, and those that do not."""
    n_active: np.ndarray
    """int64: how many were recomputed that excite the channel, as the scan saw it."""


def _errors(recomputed: Recomputed, count: int) -> _Errors:
    scanned, group = recomputed.scanned, recomputed.group
    error = np.abs(scanned.activation.astype(np.float64) - recomputed.exact)
    largest, of_weaker = np.zeros((2, count))
    np.maximum.at(largest, group, error)
    active = scanned.activation != 0
    n_active = np.bincount(group[active], minlength=count)
    weaker = ~active | (2 * _number_within(group, active) > n_active[group])
    np.maximum.at(of_weaker, group[weaker], error[weaker])
    return _Errors(largest, of_weaker, n_active)


def _error_bound(errors: _Errors, groups: Groups, typical: TypicalErrors) -> np.ndarray:
    """Return by how much an image that was not recomputed may be off, float64 [groups]."""
    nothing = TypicalError(0.0, 0.0)
    share, least = np.array([typical.get(number, nothing) for number in groups.error_class.tolist()]).reshape(-1, 2).T
    of_few = np.maximum.reduce([errors.largest, share * groups.ranges, least])
    return HEURISTIC_SAFETY * np.where(errors.n_active < _HEURISTIC_MANY, of_few, errors.largest_of_weaker)


def _kth(recomputed: Recomputed, shown: np.ndarray, top_k: int, groups: Groups) -> np.ndarray:
    """Return the strength of each group's K-th candidate, float64 [groups].

    Args:
        shown: int64 indices of the recomputed that are among their group's top K.
    """
    count = len(groups.ranges)
    kth = np.full(count, np.inf)
    np.minimum.at(kth, recomputed.group[shown], strength(recomputed.exact_scores)[shown])
    fewer = np.bincount(recomputed.group[shown], minlength=count) < top_k
    kth[fewer & ~np.isneginf(groups.strongest_outside)] = -np.inf
    return kth


def _tie_value(recomputed: Recomputed, groups: Groups) -> np.ndarray:
    """Return `BoundedRanking.tie_value`."""
    outside, count = groups.strongest_outside, len(groups.ranges)
    scanned, group, exact = recomputed.scanned, recomputed.group, strength(recomputed.exact_scores)
    ties = (strength(scanned) == outside[group]) & ~groups.screened[group]
    best, worst = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(best, group[ties], exact[ties])
    np.minimum.at(worst, group[ties], exact[ties])
    tied_again = (best == worst) & (np.bincount(group[ties], minlength=count) > 1)
    at_zero = (outside == 0) & (groups.pre_relu_bound < 0)
    return np.where(at_zero, 0.0, np.where(tied_again, best, np.nan))


def _number_within(group: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return for the members of sorted groups how many of their group are counted up to them."""
    up_to = np.concatenate([[0], np.cumsum(counted)])
    return up_to[1:] - up_to[np.searchsorted(group, group)]


def _typical_errors(largest: np.ndarray, groups: Groups) -> TypicalErrors:
    """Find out what errors each layer's channels show."""
    share = np.divide(largest, groups.ranges, out=np.zeros(len(largest)), where=groups.ranges > 0)
    typical: TypicalErrors = {}
    for number in np.unique(groups.error_class).tolist():
        members = (groups.error_class == number) & (groups.ranges > 0)
        if members.any():
            all_screened = groups.screened[members].all()
            least = np.quantile(largest[members], _HEURISTIC_LEAST_ERROR) if all_screened else 0.0
            typical[number] = TypicalError(float(np.quantile(share[members], _HEURISTIC_TYPICAL_SHARE)), float(least))
    return typical
