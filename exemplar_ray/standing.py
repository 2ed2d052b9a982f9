"""How sure a channel's ranking is: what was recomputed, held against what was not. Numpy only.

Screening computes all images fast and a few of them exactly. The few are the top K if no other image could be
among it: if the strongest other image, as the scan saw it, plus the error that the scan may have
made, stays below the K-th recomputed activation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exemplar_ray.topk import Scores, rank, strength

# The error of an image that was not recomputed is taken to be at most so many times the largest
# seen among those of its channel that were.
SAFETY = 2.0


@dataclass(frozen=True)
class Standing:
    """The rankings of all groups of candidates (a series' channel, strongest or weakest); arrays are [groups]."""

    order: np.ndarray
    """int64 [looked at]: where the recomputed candidates stand among all, by group, then exact rank."""
    ranks: np.ndarray
    """int32 [looked at]: exact ranks from 1."""
    error: np.ndarray
    """float64: largest difference between a scanned and a recomputed activation."""
    kth: np.ndarray
    """float64: strength of the K-th candidate; -infinity where there are fewer than K and may be more."""
    outside: np.ndarray
    """float64: strength, as scanned, that no image outside the recomputed ones exceeds; -infinity if all are known."""

    @property
    def reach(self) -> np.ndarray:
        """Return the strength that an image outside may have if it were recomputed."""
        return self.outside + SAFETY * self.error

    @property
    def settled(self) -> np.ndarray:
        """Return whether no image outside can belong to the top K."""
        # Without any error, the scan's order is the exact order, ties included.
        return np.isneginf(self.outside) | (np.isfinite(self.kth) & (self.error == 0)) | (self.reach < self.kth)


def stand(
    ranked: Scores, groups: np.ndarray, looked_at: np.ndarray, exact: np.ndarray, top_k: int, outside: np.ndarray
) -> Standing:
    """Rank recomputed candidates and say how far they are from the others.

    Args:
        ranked: all candidates, sorted, with the scan's activations.
        groups: int64, as long: the number of the group that each is ranked in.
        looked_at: int64 indices of those that were recomputed; at least the first of every group.
        exact: float32, as long as `looked_at`: their recomputed activations.
        top_k: how many are exemplars.
        outside: see `Standing`.
    """
    scanned, group = ranked.take(looked_at), groups[looked_at]
    recomputed = scanned._replace(activation=exact)
    error = np.zeros(len(outside))
    np.maximum.at(error, group, np.abs(scanned.activation.astype(np.float64) - exact))
    order, ranks = rank(recomputed)
    shown = order[ranks <= top_k]
    kth = np.full(len(outside), np.inf)
    np.minimum.at(kth, group[shown], strength(recomputed)[shown])
    few = np.bincount(group[shown], minlength=len(outside)) < top_k
    kth[few & ~np.isneginf(outside)] = -np.inf
    return Standing(looked_at[order], ranks, error, kth, outside)
