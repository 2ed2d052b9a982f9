"""How sure a channel's ranking is: what was recomputed, held against what was not. Numpy only.

Screening computes all images fast and a few of them exactly. The few are the top K if no other image could be
among it: if the strongest other image, as the scan saw it, plus the error that the scan may have
made, stays below the K-th recomputed activation.

That error is estimated from the images that were recomputed: no proof, as nothing less than recomputing
every image would be. The constants were chosen on 800 ImageNet photographs, scanned in bfloat16 from
pixels that were a level off: maximum and mean of three layers of a trained network and of an untrained one, where all
3,004 channels came out with the exact top 10, and none was left in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exemplar_ray.topk import Scores, rank, strength

# An image that was not recomputed is taken to be off by at most so many times the channel's error. That is the
# largest seen, but if those few were lucky, as much of the channel's range as half of the layer's channels show; and
# for channels that hardly ever fire, whose range says nothing of what goes on before their ReLU, what all but a
# tenth of the channels show. Where so many were recomputed that excite the channel, they are no few: then the weaker
# half of them tells, as errors grow with the activation, and what was not recomputed is weaker still.
SAFETY = 3.0
_USUAL_SHARE = 0.5
_LEAST_ERROR = 0.1
_NO_FEW = 50

# {layer: the usual error as a share of a channel's range, and the least in the units of activations}.
Usual = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Groups:
    """What is ranked together: a channel's strongest, or its weakest. Arrays are [groups]."""

    outside: np.ndarray
    """float64: strength, as scanned, that no image outside the recomputed ones exceeds; -infinity if all are known."""
    layer: np.ndarray
    """int64: equal numbers for groups whose errors are alike, as shares of their ranges."""
    scale: np.ndarray
    """float64: the channel's range, in the units of activations."""
    screened: np.ndarray
    """bool: scanned otherwise than by the reference, but for rounding."""
    below_zero: np.ndarray
    """float64: what an image that was scanned as 0 may have come to before the ReLU, if it was not recomputed; NaN if
    that is not known."""


@dataclass(frozen=True)
class Standing:
    """The rankings of all groups of candidates; arrays are [groups] where nothing else is said."""

    order: np.ndarray
    """int64 [looked at]: where the recomputed candidates stand among all, by group, then exact rank."""
    ranks: np.ndarray
    """int32 [looked at]: exact ranks from 1."""
    seen_error: np.ndarray
    """float64: largest difference between a scanned and a recomputed activation."""
    allowance: np.ndarray
    """float64: by how much an image outside may be stronger than it was scanned."""
    kth: np.ndarray
    """float64: strength of the K-th candidate; -infinity where there are fewer than K and may be more."""
    outside: np.ndarray
    """As in `Groups`."""
    level: np.ndarray
    """float64: the strength of the images outside, where they are known to be ties of recomputed ones; else NaN."""
    in_order: np.ndarray
    """bool: without any error, the scan's order is the exact order, ties included; after screening only in
    channels that never fire, nor come near to it as far as is known."""
    usual: Usual

    @property
    def reach(self) -> np.ndarray:
        """Return the strength that an image outside may have if it were recomputed."""
        return self.outside + self.allowance

    @property
    def settled(self) -> np.ndarray:
        """Return whether no image outside can belong to the top K."""
        in_order = np.isfinite(self.kth) & (self.in_order | (self.level <= self.kth))
        return np.isneginf(self.outside) | in_order | (self.reach < self.kth)


def stand(
    ranked: Scores,
    group_of: np.ndarray,
    looked_at: np.ndarray,
    exact: np.ndarray,
    top_k: int,
    groups: Groups,
    usual: Usual | None = None,
) -> Standing:
    """Rank recomputed candidates and say how far they are from the others.

    Copies of an image, and images that do not excite a channel at all, have equal activations, and there may be
    any number of them. Where the images outside are equal to several that were recomputed, and these came out
    equal again, they are taken to do so, too; but not after screening, which may take different images for equal
    ones: then only if they were scanned as 0, and are known to be far enough below it before the ReLU.

    Args:
        ranked: all candidates, sorted, with the scan's activations.
        group_of: int64, as long: the number of the group that each is ranked in.
        looked_at: int64 indices of those that were recomputed; at least the first of every group.
        exact: float32, as long as `looked_at`: their recomputed activations.
        top_k: how many are exemplars.
        usual: of layers whose usual errors are known; those of others are taken from these groups.
    """
    outside, count = groups.outside, len(groups.outside)
    scanned, group = ranked.take(looked_at), group_of[looked_at]
    recomputed = scanned._replace(activation=exact)
    error = np.abs(scanned.activation.astype(np.float64) - exact)
    seen_error = np.zeros(count)
    np.maximum.at(seen_error, group, error)
    fires = scanned.activation != 0
    firing = np.bincount(group[fires], minlength=count)
    weaker = ~fires | (2 * _number_within(group, fires) > firing[group])
    error_of_weaker = np.zeros(count)
    np.maximum.at(error_of_weaker, group[weaker], error[weaker])
    order, ranks = rank(recomputed)
    shown = order[ranks <= top_k]
    kth = np.full(count, np.inf)
    np.minimum.at(kth, group[shown], strength(recomputed)[shown])
    few = np.bincount(group[shown], minlength=count) < top_k
    kth[few & ~np.isneginf(outside)] = -np.inf
    ties = (strength(scanned) == outside[group]) & ~groups.screened[group]
    best_tie, worst_tie = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(best_tie, group[ties], strength(recomputed)[ties])
    np.minimum.at(worst_tie, group[ties], strength(recomputed)[ties])
    tied_again = (best_tie == worst_tie) & (np.bincount(group[ties], minlength=count) > 1)
    at_zero = (outside == 0) & (groups.below_zero < 0)
    usual = {**_usual_errors(seen_error, groups), **(usual or {})}
    share, least = np.array([usual.get(layer, (0.0, 0.0)) for layer in groups.layer.tolist()]).reshape(-1, 2).T
    of_few = np.maximum.reduce([seen_error, share * groups.scale, least])
    return Standing(
        order=looked_at[order],
        ranks=ranks,
        seen_error=seen_error,
        allowance=SAFETY * np.where(firing < _NO_FEW, of_few, error_of_weaker),
        kth=kth,
        outside=outside,
        level=np.where(at_zero, 0.0, np.where(tied_again, best_tie, np.nan)),
        in_order=(seen_error == 0) & (~groups.screened | ((groups.scale == 0) & ~(groups.below_zero >= 0))),
        usual=usual,
    )


def _number_within(group: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return for the members of sorted groups how many of their group are counted up to them."""
    up_to = np.concatenate([[0], np.cumsum(counted)])
    return up_to[1:] - up_to[np.searchsorted(group, group)]


def _usual_errors(seen: np.ndarray, groups: Groups) -> Usual:
    """Find out what errors each layer's channels show."""
    share = np.divide(seen, groups.scale, out=np.zeros(len(seen)), where=groups.scale > 0)
    usual: Usual = {}
    for layer in np.unique(groups.layer).tolist():
        members = (groups.layer == layer) & (groups.scale > 0)
        if members.any():
            least = np.quantile(seen[members], _LEAST_ERROR) if groups.screened[members].all() else 0.0
            usual[layer] = float(np.quantile(share[members], _USUAL_SHARE)), float(least)
    return usual
