"""Count, mean, variance, minimum, maximum, and how often a channel is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa


@dataclass
class Moments:
    """Moments of each channel's finite activations; every array is [channels].

    Means and squared deviations are float64 and merge by the pairwise update of Chan, Golub
    and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979), equation 2.1: no catastrophic cancellation, whatever the mean.
    """

    images: np.ndarray
    """int64: images with a finite activation."""
    mean: np.ndarray
    deviations: np.ndarray
    """float64: sum of squared deviations from the mean."""
    minimum: np.ndarray
    """float32; +infinity where there are no images."""
    maximum: np.ndarray
    """float32; -infinity where there are no images."""
    active: np.ndarray
    """int64: images with an activation above 0."""

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the moments of no images."""
        count, real, bound = np.zeros(channels, np.int64), np.zeros(channels), np.full(channels, np.inf, np.float32)
        return cls(count, real, real.copy(), bound, -bound, count.copy())

    def update(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Take in float32 [images, channels]; labels do not matter."""
        finite = np.isfinite(activations)
        images = finite.sum(axis=0)
        values = np.where(finite, activations, 0).astype(np.float64)
        mean = values.sum(axis=0) / np.maximum(images, 1)
        deviations = (np.where(finite, values - mean, 0) ** 2).sum(axis=0)
        minimum = np.where(finite, activations, np.float32(np.inf)).min(axis=0, initial=np.float32(np.inf))
        maximum = np.where(finite, activations, np.float32(-np.inf)).max(axis=0, initial=np.float32(-np.inf))
        merged = self.merge(Moments(images, mean, deviations, minimum, maximum, (values > 0).sum(axis=0)))
        self.__dict__.update(merged.__dict__)

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets of images."""
        images = self.images + other.images
        share = other.images / np.maximum(images, 1)
        difference = other.mean - self.mean
        return type(self)(
            images=images,
            mean=self.mean + difference * share,
            deviations=self.deviations + other.deviations + difference**2 * self.images * share,
            minimum=np.minimum(self.minimum, other.minimum),
            maximum=np.maximum(self.maximum, other.maximum),
            active=self.active + other.active,
        )

    def to_table(self) -> pa.Table:
        """Return the arrays as they are, a row a channel."""
        return pa.table(dict(self.__dict__))

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned."""
        return cls(**{name: table[name].to_numpy() for name in table.column_names})

    def columns(self) -> dict[str, np.ndarray]:
        """Return images, mean, variance (of the images, not an estimate), min, max, active_fraction.

        All but `images` are NaN for a channel without a finite activation.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            some = self.images > 0
            return {
                "images": self.images,
                "mean": np.where(some, self.mean, np.nan),
                "variance": self.deviations / self.images,
                "min": np.where(some, self.minimum, np.float32(np.nan)),
                "max": np.where(some, self.maximum, np.float32(np.nan)),
                "active_fraction": self.active / self.images,
            }
