"""Quantiles of each channel, from a histogram whose bins are the same for every run.

A bin holds the float32s that agree in sign, exponent and the first 5 bits of the fraction:
32 bins an octave, and 0 in a bin with what is below 1e-38. Counts are whole numbers and
the bins never move, so merging is exact. Bins of a fixed relative width are those of DDSketch (Masson, Rim and Lee,
"DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", VLDB 2019), with the float's own
bits in the place of its logarithm. A quantile is given as the middle of the bin in which the
value of that rank lies: off by at most 1/64 of the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column

_FRACTION_BITS = 5
_DROPPED_BITS = 23 - _FRACTION_BITS

RELATIVE_ERROR = 2.0 ** -(_FRACTION_BITS + 1)
QUANTILES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)


@dataclass
class Histogram:
    """Sparse counts: parallel arrays sorted by (channel, bin), without repetitions."""

    channels: int
    channel: np.ndarray
    """int32: which of the channels, by place."""
    bin: np.ndarray
    """int32: see `bin_of`; grows with the activation."""
    count: np.ndarray
    """int64: images in the bin."""

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the histogram of no images."""
        return cls(channels, np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int64))

    def update(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Take in float32 [images, channels]; labels do not matter."""
        finite = np.isfinite(activations)
        channel = np.broadcast_to(np.arange(activations.shape[1], dtype=np.int32), activations.shape)[finite]
        bins = bin_of(activations[finite])
        added = _sum(self.channels, channel, bins, np.ones(len(bins), np.int64))
        self.__dict__.update(self.merge(Histogram(self.channels, *added)).__dict__)

    def merge(self, other: Self) -> Self:
        """Return the histogram of both sets of images."""
        both = (np.concatenate(pair) for pair in zip(self._arrays(), other._arrays(), strict=True))
        return type(self)(self.channels, *_sum(self.channels, *both))

    def to_table(self) -> pa.Table:
        """Return bins and counts as lists, a row a channel."""
        lengths = np.diff(np.searchsorted(self.channel, np.arange(self.channels + 1)))
        return pa.table({"bins": list_column(lengths, self.bin), "counts": list_column(lengths, self.count)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned."""
        lengths, bins = lengths_and_values(table["bins"])
        channel = np.repeat(np.arange(len(table), dtype=np.int32), lengths)
        return cls(len(table), channel, bins, lengths_and_values(table["counts"])[1])

    def columns(self) -> dict[str, np.ndarray]:
        """Return q01 ... q99, float32, as `numpy.quantile(..., method="inverted_cdf")` defines them;
        NaN for a channel without a finite activation."""
        return {f"q{round(100 * q):02d}": self.quantile(q) for q in QUANTILES}

    def quantile(self, q: float) -> np.ndarray:
        """Return each channel's smallest activation that a share `q` of its images does not exceed."""
        up_to = np.cumsum(self.count)
        starts, ends = self._bounds(np.arange(self.channels))
        before, images = self._counted(up_to, starts), self._counted(up_to, ends) - self._counted(up_to, starts)
        wanted = before + np.maximum(1, np.ceil(q * images - 1e-9)).astype(np.int64)
        result = np.full(self.channels, np.nan, np.float32)
        some = images > 0
        result[some] = middle_of(self.bin[np.searchsorted(up_to, wanted[some])])
        return result

    def count_below(self, channels: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """Return how many images of a channel lie below an activation, those of its bin evenly spread over the bin.

        None of the bin of 0 lies below 0.

        Args:
            channels: int [n], by place.
            activations: float32 [n], finite.

        Returns:
            float64 [n].
        """
        activations = np.asarray(activations, np.float32)
        bins = bin_of(activations)
        keys = _keys(self.channel, self.bin)
        at = np.searchsorted(keys, _keys(channels, bins))
        up_to = np.cumsum(self.count)
        below = (self._counted(up_to, at) - self._counted(up_to, self._bounds(channels)[0])).astype(np.float64)
        inside = np.flatnonzero((at < len(keys)) & (bins != 0))
        inside = inside[keys[at[inside]] == _keys(channels, bins)[inside]]
        fraction = (np.abs(activations[inside]).view(np.int32) & ((1 << _DROPPED_BITS) - 1)) / (1 << _DROPPED_BITS)
        below[inside] += self.count[at[inside]] * np.where(activations[inside] > 0, fraction, 1 - fraction)
        return below

    def _bounds(self, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where channels start and end in the arrays."""
        return np.searchsorted(self.channel, channels), np.searchsorted(self.channel, channels, side="right")

    @staticmethod
    def _counted(up_to: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the images before places in the arrays, given the cumulated counts."""
        return np.concatenate([[0], up_to])[places]

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.channel, self.bin, self.count


def bin_of(activations: np.ndarray) -> np.ndarray:
    """Return the bins (int32) of finite float32 activations; larger activations, larger bins."""
    bits = (np.asarray(activations, np.float32) + np.float32(0)).view(np.int32)
    # Magnitudes below the smallest normal number (1.2e-38) count as 0.
    magnitude = (bits & 0x7FFFFFFF) >> _DROPPED_BITS
    magnitude = np.where(magnitude < (1 << _FRACTION_BITS), 0, magnitude)
    return np.where(bits < 0, -magnitude, magnitude).astype(np.int32)


def middle_of(bins: np.ndarray) -> np.ndarray:
    """Return the middle (float32) of bins; 0 for the bin of 0."""
    magnitude = np.abs(np.asarray(bins, np.int64))
    bits = ((magnitude << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))).astype(np.int32)
    return np.where(magnitude == 0, 0, np.sign(bins) * bits.view(np.float32)).astype(np.float32)


def edges_of(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where bins begin and end (float32, float32), the lower value first; 0 and 0 for the bin of 0."""
    magnitude = np.abs(np.asarray(bins, np.int64))
    near, far = (((magnitude + step) << _DROPPED_BITS).astype(np.int32).view(np.float32) for step in (0, 1))
    # The last bin ends at infinity, which no activation in it reaches.
    far = np.minimum(far, np.finfo(np.float32).max)
    low, high = np.where(bins < 0, -far, near), np.where(bins < 0, -near, far)
    return np.where(magnitude == 0, 0, low).astype(np.float32), np.where(magnitude == 0, 0, high).astype(np.float32)


def _keys(channel: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Pack channel and bin into one int64 that sorts by both."""
    return channel.astype(np.int64) * (1 << 32) + (bins.astype(np.int64) + (1 << 31))


def _sum(
    channels: int, channel: np.ndarray, bins: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add up the counts of equal (channel, bin), sorted."""
    keys = _keys(channel, bins)
    # Sorts what is two sorted histograms, one after another, by going through it once.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    total = np.add.reduceat(count[order], starts) if len(starts) else count
    keys = keys[starts]
    return (keys >> 32).astype(np.int32), ((keys & 0xFFFFFFFF) - (1 << 31)).astype(np.int32), total
