"""Count, mean and covariance of points, which merge: what a Fréchet distance and principal components need of a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# So many points are centred at a time, so that memory does not grow with their number.
_POINTS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a set of points.

    Attributes:
        count: how many points.
        mean: float64 [channels]
        scatter: float64 [channels, channels]: the sum of the outer products of what lies between each point and the
            mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Return those of no points."""
        return cls(0, np.zeros(channels), np.zeros((channels, channels)))

    @classmethod
    def of(cls, points: np.ndarray) -> Moments:
        """Compute those of points, in their order.

        Args:
            points: float [points, channels], finite.
        """
        found = cls.none(points.shape[1])
        for first in range(0, len(points), _POINTS_AT_ONCE):
            few = points[first : first + _POINTS_AT_ONCE].astype(np.float64)
            mean = few.mean(axis=0)
            apart = few - mean
            found = found.merged(cls(len(few), mean, apart.T @ apart))
        return found

    def merged(self, other: Moments) -> Moments:
        """Return those of both sets together.

        By Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
        eq. 2.1: sums of squares would cancel. The last bits depend on the order, so merge in the order of the shards.
        """
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        between = other.mean - self.mean
        mean = self.mean + between * (other.count / count)
        spread = np.outer(between, between) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + spread)

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of the points as a sample, over count - 1: float64 [channels, channels]; NaN of one or none.

        >>> float(Moments.of(np.array([[1.0], [2.0], [3.0]])).covariance[0, 0])
        1.0
        """
        if self.count < 2:
            return np.full(self.scatter.shape, np.nan)
        return self.scatter / (self.count - 1)
