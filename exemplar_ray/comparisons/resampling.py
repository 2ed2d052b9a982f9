"""How far a number would be off with other shards: an interval from shards that are drawn again, with replacement.

This is the bootstrap of Efron, "Bootstrap methods: another look at the jackknife" (1979), with shards for observations.
Distances between samples are never negative, so those of redrawn shards lie above the value on average. The interval is
therefore moved so that the mean of the draws lies on the value: it is the spread, without the bias. Of few shards it is
too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW_SHARDS = 10
"""Of fewer shards an interval says little."""


@dataclass(frozen=True)
class Resampling:
    """How to draw.

    Attributes:
        seed: of the draws.
        draws: how many.
        level: the share of the draws that the interval spans.
    """

    seed: int
    draws: int = 100
    level: float = 0.95

    def weights(self, ones: int, others: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how often each shard of both sets is drawn: int64 [draws, shards] each."""
        generator = np.random.default_rng(self.seed)
        first, second = (generator.multinomial(n, np.full(n, 1 / n), self.draws) for n in (ones, others))
        return first, second

    def interval(self, value: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where intervals begin and end, neither below 0.

        Args:
            value: float64 [...].
            drawn: float64 [draws, ...]: the same number of each draw.
        """
        tail = (1 - self.level) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0) - drawn.mean(axis=0) + value
        return np.maximum(low, 0), np.maximum(high, 0)


def can_resample(ones: int, others: int) -> bool:
    """Whether there is anything to draw: two shards or more in both sets."""
    return min(ones, others) > 1


def few_shards(ones: int, others: int) -> str | None:
    """Return in words why an interval is missing or says little; None if it does not.

    >>> few_shards(1, 300)
    'no interval: there is 1 shard in one set, and 2 in each are the least'
    """
    fewest = min(ones, others)
    if fewest >= FEW_SHARDS:
        return None
    shards = f"{fewest} shard{'s' * (fewest != 1)}"
    if not can_resample(ones, others):
        return f"no interval: there is {shards} in one set, and 2 in each are the least"
    return f"the interval is too narrow: there are {shards} to draw from in one set, and {FEW_SHARDS} are few already"
