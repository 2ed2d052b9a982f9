"""How far each channel's activations over one set of images are from those over another set.

With F and G the shares of images up to an activation, the Wasserstein-1 distance is the area between F and G, in units
of the activation, and Kolmogorov-Smirnov's statistic the most that F and G are apart, 0 to 1. The first says how much
activations moved; the second, whatever the channel's scale, for how many images.

From all activations both are exact. From histograms they are so up to a bound that is stated of every channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.comparisons.points import check_pair
from exemplar_ray.comparisons.resampling import Resampling, can_resample
from exemplar_ray.errors import UsageError

# Where the shards of points are drawn again, activations are rounded up to one of so many.
_GRID = 1024


@dataclass(frozen=True, eq=False)
class Shifts:
    """How far channels are apart; the last axis of arrays is [channels].

    Attributes:
        wasserstein: float64, in units of the activation; NaN where a channel has no images in one of the sets.
        wasserstein_error: float64: how much more or less it may be.
        ks: float64, 0 to 1.
        ks_error: float64: how much more it may be; never less.
        wasserstein_interval: float64 [2, channels]: from, to; NaN where there are no two shards to draw from.
        ks_interval: float64 [2, channels].
    """

    wasserstein: np.ndarray
    wasserstein_error: np.ndarray
    ks: np.ndarray
    ks_error: np.ndarray
    wasserstein_interval: np.ndarray
    ks_interval: np.ndarray

    @classmethod
    def unknown(cls, channels: int) -> Shifts:
        """Return those of channels without images."""
        return cls(*np.full((4, channels), np.nan), *np.full((2, 2, channels), np.nan))

    def resample(self, channel: int, values: np.ndarray, tables: _Pair, weights: _Pair, how: Resampling) -> None:
        """Fill in a channel's intervals.

        Args:
            values: float64 [values], ascending: what activations are rounded to.
            tables: int64 [shards, values] of both sets: how many images of each shard have each value.
            weights: int64 [draws, shards] of both sets.
        """
        wasserstein, ks = _distances(values, *(drawn @ table for drawn, table in zip(weights, tables, strict=True)))
        self.wasserstein_interval[:, channel] = how.interval(self.wasserstein[channel], wasserstein)
        self.ks_interval[:, channel] = how.interval(self.ks[channel], ks)


_Pair = tuple[np.ndarray, np.ndarray]


def shifts(ones: np.ndarray, others: np.ndarray) -> Shifts:
    """Compare every channel's activations over two sets of images, exactly, without intervals.

    Args:
        ones: float [points, channels].
        others: float [points, channels].

    Raises:
        UsageError: another number of channels, NaN or infinity, or no points.
    """
    check_pair(ones, others, ("the first points", "the second points"))
    found = Shifts.unknown(ones.shape[1])
    found.wasserstein_error[:], found.ks_error[:] = 0, 0
    for channel in range(ones.shape[1]):
        first, second = (np.sort(points[:, channel].astype(np.float64)) for points in (ones, others))
        values = np.union1d(first, second)
        images = (np.diff(np.searchsorted(of, values, side="right"), prepend=0) for of in (first, second))
        found.wasserstein[channel], found.ks[channel] = _distances(values, *images)
    return found


def shifts_with_intervals(ones: np.ndarray, others: np.ndarray, shards: _Pair, how: Resampling) -> Shifts:
    """Compare every channel's activations over two sets of images, exactly, with intervals by drawing their shards.

    For the spread of the draws alone, activations are rounded up to one of 1,024 that divide both sets evenly.

    Args:
        ones: float [points, channels].
        others: float [points, channels].
        shards: of which shard each point is, of both sets: int [points].
        how: seed, draws and level.

    Raises:
        UsageError: see `shifts`; or there is not one shard a point.
    """
    found = shifts(ones, others)
    if [len(of) for of in shards] != [len(ones), len(others)]:
        raise UsageError(
            f"{len(ones)} and {len(others)} points have {len(shards[0])} and {len(shards[1])} shards: each needs one"
        )
    numbers = [np.unique(of, return_inverse=True)[1] for of in shards]
    first, second = (int(of.max()) + 1 for of in numbers)
    if not can_resample(first, second):
        return found
    weights = how.weights(first, second)
    for channel in range(ones.shape[1]):
        of_ones, of_others = (points[:, channel].astype(np.float64) for points in (ones, others))
        every = np.sort(np.concatenate([of_ones, of_others]))
        values = np.unique(every[np.linspace(0, len(every) - 1, _GRID).astype(np.int64)])
        tables = (
            _table(numbers[0], np.searchsorted(values, of_ones), (first, len(values))),
            _table(numbers[1], np.searchsorted(values, of_others), (second, len(values))),
        )
        found.resample(channel, values, tables, weights, how)
    return found


@dataclass(frozen=True, eq=False)
class Histograms:
    """Histograms of a layer's channels, an entry a bin with images in it, sorted by channel.

    Attributes:
        channels: int64 [channels]: their numbers, ascending.
        place: int64 [bins]: whose bin, by its place among the channels.
        low: float64 [bins]: where bins begin.
        high: float64 [bins]: where they end; where they begin, if they hold one value.
        images: int64 [bins].
    """

    channels: np.ndarray
    place: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> Histograms:
        """Return those of a run's `histograms.parquet`, of whose rows one layer and statistic were chosen.

        Raises:
            UsageError: a channel occurs twice.
        """
        channels = table["channel"].to_numpy().astype(np.int64)
        if len(np.unique(channels)) < len(channels):
            raise UsageError("a channel occurs twice in the histograms: choose one layer and one statistic")
        lengths = pc.list_value_length(table["images"]).to_numpy().astype(np.int64)
        place = np.argsort(np.argsort(channels))[np.repeat(np.arange(len(channels)), lengths)]
        order = np.argsort(place, kind="stable")
        low, high, images = (pc.list_flatten(table[name]).to_numpy()[order] for name in ("low", "high", "images"))
        return cls(np.sort(channels), place[order], low.astype(np.float64), high.astype(np.float64), images)


def shifts_of_histograms(
    ones: Sequence[Histograms], others: Sequence[Histograms], how: Resampling | None = None
) -> Shifts:
    """Compare every channel's activations over two sets of images, from histograms with the same bins.

    A bin's images are taken to be in its middle. So Wasserstein-1 is off by at most half the width of the bins, weighed
    by the images in them: of the bins of runs, by 1/64 of the two sets' mean magnitudes together. Kolmogorov-Smirnov
    is seen at the ends of bins; within one it may be more, by at most the larger share of images in it.

    Args:
        ones: of each shard of a set, or of the whole set in one.
        others: of the other set, likewise.
        how: seed, draws and level of the intervals; None for no intervals.

    Raises:
        UsageError: the histograms are not of the same channels.
    """
    channels = ones[0].channels
    for histograms in (*ones, *others):
        if not np.array_equal(histograms.channels, channels):
            raise UsageError(
                f"histograms of {len(channels)} channels cannot be compared with those of {len(histograms.channels)} "
                "others: compare the same channels of the same layer"
            )
    found = Shifts.unknown(len(channels))
    resampled = how if how and can_resample(len(ones), len(others)) else None
    weights = resampled.weights(len(ones), len(others)) if resampled else None
    for place, (first, second) in enumerate(zip(_by_place(ones), _by_place(others), strict=True)):
        if not len(first.low) or not len(second.low):
            continue
        low, at = np.unique(np.concatenate([first.low, second.low]), return_index=True)
        high = np.concatenate([first.high, second.high])[at]
        tables = first.table(low), second.table(low)
        _fill_in(found, place, low, high, (tables[0].sum(axis=0), tables[1].sum(axis=0)))
        if resampled and weights:
            found.resample(place, (low + high) / 2, tables, weights, resampled)
    return found


def _fill_in(found: Shifts, channel: int, low: np.ndarray, high: np.ndarray, images: _Pair) -> None:
    """Fill in a channel's distances and their errors, from the bins of both sets."""
    found.wasserstein[channel], found.ks[channel] = _distances((low + high) / 2, *images)
    first, second = (of / of.sum() for of in images)
    found.wasserstein_error[channel] = (first + second) @ (high - low) / 2
    # Within a bin all images of the one set may come before all of the other.
    before = np.cumsum(first) - first - (np.cumsum(second) - second)
    within = np.maximum(first + before, second - before)[high > low].max(initial=0)
    found.ks_error[channel] = max(0, within - found.ks[channel])


def _distances(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Wasserstein-1 and Kolmogorov-Smirnov, float64 [...], of so many images [..., values] with each value."""
    with np.errstate(invalid="ignore"):
        one, other = (np.cumsum(of, axis=-1) / of.sum(axis=-1, keepdims=True) for of in (first, second))
    apart = np.abs(one - other)
    return apart[..., :-1] @ np.diff(values), apart.max(axis=-1)


def _table(
    shards: np.ndarray, cells: np.ndarray, shape: tuple[int, int], images: np.ndarray | None = None
) -> np.ndarray:
    """Return how many images each shard has in each cell: float64 [shards, cells]."""
    return np.bincount(shards * shape[1] + cells, images, shape[0] * shape[1]).reshape(shape).astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Bins:
    """A channel's bins in every shard of a set; arrays are [bins]."""

    shards: int
    shard: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray

    def table(self, low: np.ndarray) -> np.ndarray:
        """Return how many images each shard has in each bin, given where all bins begin."""
        return _table(self.shard, np.searchsorted(low, self.low), (self.shards, len(low)), self.images)


def _by_place(shards: Sequence[Histograms]) -> list[_Bins]:
    """Return each channel's bins."""
    lengths = [len(of.place) for of in shards]
    place = np.concatenate([of.place for of in shards])
    order = np.argsort(place, kind="stable")
    shard = np.repeat(np.arange(len(shards)), lengths)[order]
    low, high, images = (
        np.concatenate([getattr(of, name) for of in shards])[order] for name in ("low", "high", "images")
    )
    edges = np.searchsorted(place[order], np.arange(len(shards[0].channels) + 1))
    cuts = [slice(edges[i], edges[i + 1]) for i in range(len(edges) - 1)]
    return [_Bins(len(shards), shard[cut], low[cut], high[cut], images[cut]) for cut in cuts]
