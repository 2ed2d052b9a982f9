"""Images that a screened scan saw leave a channel at 0, and how near they come to exciting it. Numpy only.

After a ReLU they are all ties, and an error of the scan may hide an exemplar among them. Before it they stand in an
order. Those that the error may lift over 0 are recomputed. The others are at 0 indeed.

How large the error may be is a heuristic, see `certainty`.
"""

from __future__ import annotations

import math

import numpy as np

from exemplar_ray.exemplars.rerank.certainty import HEURISTIC_SAFETY
from exemplar_ray.exemplars.topk import Scores, find, number_groups, rank, spans

# Errors are alike in all channels of a layer, so its channels share what is known of them. So many are looked at.
_HEURISTIC_ERRORS_TO_SEE = 30
_HEURISTIC_TYPICAL_QUANTILE = 0.9


class NearZero:
    """What is known of those images, channel by channel.

    Args:
        nearest: of every channel the nearest to exciting it (`NEAR_ZERO`): all
            that the scan saw above the last of them.
        top_k: how many of a channel are looked at first, at most.
    """

    def __init__(self, nearest: Scores, top_k: int) -> None:
        order, self._ranks = rank(nearest)
        self.nearest = nearest.take(order)
        self._top_k = top_k
        self._spans = spans(self.nearest.readout, self.nearest.channel)
        self._groups = number_groups(self.nearest)
        firsts = [span.start for span in self._spans]
        self._readouts = self.nearest.readout[firsts]
        pairs = zip(self._readouts.tolist(), self.nearest.channel[firsts].tolist(), strict=True)
        self._group_numbers = {pair: number for number, pair in enumerate(pairs)}
        self._depths = np.zeros(len(firsts), np.int64)

    def __contains__(self, pair: tuple[int, int]) -> bool:
        """Return whether there are such images of a (readout, channel)."""
        return pair in self._group_numbers

    @property
    def looked_at(self) -> np.ndarray:
        """Return the indices, among the nearest, of those that are recomputed."""
        return np.flatnonzero(self._ranks <= self._depths[self._groups])

    def upper_bounds(self, exact: Scores) -> dict[tuple[int, int], float]:
        """Return what an image that was not recomputed may have come to before the ReLU, by (readout, channel).

        Args:
            exact: what has been recomputed, these images among the others.
        """
        bound = self._error_bounds(exact)
        return {
            pair: self._nearest_outside(number) + float(bound[number]) for pair, number in self._group_numbers.items()
        }

    def look_deeper(self, pairs: list[tuple[int, int]], exact: Scores) -> bool:
        """Look at all that an error may lift over 0 in some channels; false if there are no more of them."""
        before = self._depths.copy()
        bound = self._error_bounds(exact)
        numbers = [self._group_numbers[pair] for pair in pairs]
        first_look = max(1, math.ceil(_HEURISTIC_ERRORS_TO_SEE / max(1, len(numbers))))
        for number in numbers:
            values = self.nearest.activation[self._spans[number]]
            if self._depths[number] == 0:
                deeper = min(first_look, self._top_k)
            elif self._nearest_outside(number) + bound[number] < 0:
                continue
            else:
                deeper = max(int((values + bound[number] >= 0).sum()), self._depths[number] + 1)
            self._depths[number] = min(deeper, len(values))
        return bool((self._depths > before).any())

    def _nearest_outside(self, number: int) -> float:
        """Return what the scan saw of the nearest image that was not recomputed; or of the last, if all kept were."""
        span = self._spans[number]
        return float(self.nearest.activation[min(span.start + int(self._depths[number]), span.stop - 1)])

    def _error_bounds(self, exact: Scores) -> np.ndarray:
        """Return by how much the scan may be off, float64 by channel; infinite where nothing was recomputed."""
        looked_at = self.nearest.take(self.looked_at)
        group = self._groups[self.looked_at]
        among_exact = find(exact, looked_at)
        recomputed = among_exact >= 0
        error = np.abs(looked_at.activation[recomputed].astype(np.float64) - exact.activation[among_exact[recomputed]])
        largest = np.full(len(self._spans), -np.inf)
        np.maximum.at(largest, group[recomputed], error)
        bounds = np.full(len(self._spans), np.inf)
        for readout in np.unique(self._readouts):
            members = (self._readouts == readout) & np.isfinite(largest)
            if members.any():
                typical = np.quantile(largest[members], _HEURISTIC_TYPICAL_QUANTILE)
                bounds[members] = HEURISTIC_SAFETY * np.maximum(largest[members], typical)
        return bounds
