"""How far a number would be off with other shards: an interval from halves of the shards, drawn again and again.

The spread of a number over random halves is that of the number of all shards over other data: McCarthy,
"Pseudo-replication: half samples" (1969); Shao and Wu, "A general theory for jackknife variance estimation" (1989). A
bootstrap, which draws with replacement, has some shards twice, in each draw more or fewer of them. Distances of samples
are too large, by more the fewer different points there are, so its draws would differ by that alone: those of a Fréchet
distance in many channels by several times what data make of it. Halves all have the same number of shards.

What is left of that bias is the same in all draws. The interval is moved so that their mean lies on the value: it is
the spread, without the bias. An odd number of shards makes it a little too wide; of few shards it says little.
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
        """Return whether each shard of both sets is drawn: int64 [draws, shards] each, 0 or 1."""
        generator = np.random.default_rng(self.seed)
        first, second = (generator.random((self.draws, n)).argsort(axis=1) < n // 2 for n in (ones, others))
        return first.astype(np.int64), second.astype(np.int64)

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


# Of the classes that shards would have if images were mixed, so large a share is not much fewer.
_MIXED = 0.75


def sorted_by_class(shards: np.ndarray, labels: np.ndarray) -> bool:
    """Whether shards hold far fewer classes than if images were mixed; halves of them then lack classes, and intervals
    are as wide as classes are apart.

    Of n images, drawn from C classes of shares p, a shard would have the sum of 1 - (1 - p)^n classes.

    Args:
        shards: int [images]: of which shard each is.
        labels: int [images]; negative for none.

    >>> sorted_by_class(np.array([0, 0, 1, 1]), np.array([3, 3, 7, 7]))
    True
    >>> sorted_by_class(np.array([0, 1, 0, 1]), np.array([3, 3, 7, 7]))
    False
    """
    shards, labels = shards[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return False
    _, images = np.unique(shards, return_counts=True)
    _, of_class = np.unique(labels, return_counts=True)
    there = len(np.unique(np.stack([shards, labels]), axis=1).T)
    shares = of_class / len(labels)
    mixed = float((1 - (1 - shares[:, None]) ** images).sum())
    return there < _MIXED * mixed


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
    return f"the interval says little: there are {shards} in one set, and {FEW_SHARDS} are few already"
