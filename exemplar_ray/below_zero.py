"""Images that screening saw leave a channel at 0, and how near they come to exciting it. Numpy only.

After a ReLU they are all ties, and an error of the scan may hide an exemplar among them. Before it they stand in an
order: those that the error may lift over 0 are recomputed, and the others are at 0 indeed.
"""

from __future__ import annotations

import math

import numpy as np

from exemplar_ray.standing import SAFETY
from exemplar_ray.topk import Scores, find, number_groups, rank, spans

# Errors are alike in all channels of a layer, so a layer's channels share what is known of them: at least so many.
_ERRORS_TO_SEE = 30
_USUAL_QUANTILE = 0.9


class BelowZero:
    """What is known of those images, channel by channel.

    Args:
        nearest: of every channel the nearest to exciting it, by what they were before the ReLU: all
            that the scan saw above the last of them.
        top_k: how many of a channel are looked at first, at most.
    """

    def __init__(self, nearest: Scores, top_k: int) -> None:
        order, self._ranks = rank(nearest)
        self.nearest = nearest.take(order)
        self._top_k = top_k
        self._spans = spans(self.nearest.series, self.nearest.channel)
        self._groups = number_groups(self.nearest)
        firsts = [span.start for span in self._spans]
        self._series = self.nearest.series[firsts]
        pairs = zip(self._series.tolist(), self.nearest.channel[firsts].tolist(), strict=True)
        self._numbers = {pair: number for number, pair in enumerate(pairs)}
        self._depths = np.zeros(len(firsts), np.int64)

    def __contains__(self, pair: tuple[int, int]) -> bool:
        """Return whether images of a (series, channel) are known."""
        return pair in self._numbers

    @property
    def looked_at(self) -> np.ndarray:
        """Return the indices, among the nearest, of those that are recomputed."""
        return np.flatnonzero(self._ranks <= self._depths[self._groups])

    def reaches(self, exact: Scores) -> dict[tuple[int, int], float]:
        """Return what an image that was not recomputed may have come to before the ReLU, by (series, channel).

        Args:
            exact: what has been recomputed, these images among the others.
        """
        allowance = self._allowances(exact)
        return {pair: self._outside(number) + float(allowance[number]) for pair, number in self._numbers.items()}

    def look_deeper(self, pairs: list[tuple[int, int]], exact: Scores) -> bool:
        """Look at all that an error may lift over 0 in some channels; false if there are no more of them."""
        before = self._depths.copy()
        allowance = self._allowances(exact)
        numbers = [self._numbers[pair] for pair in pairs]
        first_look = max(1, math.ceil(_ERRORS_TO_SEE / max(1, len(numbers))))
        for number in numbers:
            values = self.nearest.activation[self._spans[number]]
            if self._depths[number] == 0:
                deeper = min(first_look, self._top_k)
            elif self._outside(number) + allowance[number] < 0:
                continue
            else:
                deeper = max(int((values + allowance[number] >= 0).sum()), self._depths[number] + 1)
            self._depths[number] = min(deeper, len(values))
        return bool((self._depths > before).any())

    def _outside(self, number: int) -> float:
        """Return what the scan saw of the nearest image that was not recomputed; or of the last, if all kept were."""
        span = self._spans[number]
        return float(self.nearest.activation[min(span.start + int(self._depths[number]), span.stop - 1)])

    def _allowances(self, exact: Scores) -> np.ndarray:
        """Return by how much the scan may be off, float64 by channel; infinite where nothing was recomputed."""
        looked_at = self.nearest.take(self.looked_at)
        group = self._groups[self.looked_at]
        place = find(exact, looked_at)
        known = place >= 0
        seen = np.full(len(self._spans), -np.inf)
        error = np.abs(looked_at.activation[known].astype(np.float64) - exact.activation[place[known]])
        np.maximum.at(seen, group[known], error)
        result = np.full(len(self._spans), np.inf)
        for series in np.unique(self._series):
            of_series = (self._series == series) & np.isfinite(seen)
            if of_series.any():
                usual = np.quantile(seen[of_series], _USUAL_QUANTILE)
                result[of_series] = SAFETY * np.maximum(seen[of_series], usual)
        return result
