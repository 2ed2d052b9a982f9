"""The Fréchet distance of two sets of points, as if each were normally distributed; for Inception's features, the FID.

|m1 - m2|² + tr S1 + tr S2 - 2 tr (S1^½ S2 S1^½)^½, with means m and covariances S over count - 1: Dowson and Landau,
"The Fréchet distance between multivariate normal distributions" (1982); Heusel et al., "GANs trained by a two
time-scale update rule" (2017). It is the square of a distance, as everybody reports it. The last term is the sum of
the roots of the eigenvalues of a symmetric matrix. The root of the product of both covariances, which is not symmetric,
gets imaginary parts by rounding.

The distance of few points is too large, by about a constant over their number: see `at_infinity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exemplar_ray.comparisons.points import check_channels, check_points
from exemplar_ray.comparisons.resampling import Resampling, can_resample
from exemplar_ray.errors import UsageError
from exemplar_ray.moments import Moments

_EPSILON = float(np.finfo(np.float64).eps)
_SIZES = 15


def distance(one: Moments, other: Moments) -> float:
    """Return the Fréchet distance of two sets, in squared units of the activations.

    What rounding alone may have brought about is 0, in the means' part and in the covariances', each by itself: see
    `_of_means` and `_rounding`. So a set has distance 0 to itself, in whatever order its shards were merged.

    Raises:
        UsageError: another number of channels, or fewer than two points in a set.
    """
    check_channels(len(one.mean), len(other.mean))
    fewest = min(one.count, other.count)
    if fewest < 2:
        raise UsageError(f"a Fréchet distance needs two points in each set; one has {fewest}")
    return _of_means(one, other) + _of_covariances(one, other)


def _of_means(one: Moments, other: Moments) -> float:
    """Return the square of the distance of the means; 0 where it is less than a thousand roundings of them."""
    apart = one.mean - other.mean
    sizes = sum(of.mean @ of.mean + np.trace(of.covariance) for of in (one, other))
    found = float(apart @ apart)
    return found if found > (1000 * _EPSILON) ** 2 * float(sizes) else 0.0


def _of_covariances(one: Moments, other: Moments) -> float:
    # The set of fewer points has the fewer directions, and none but these count.
    one, other = sorted((one, other), key=lambda moments: moments.count)
    first, second = one.covariance, other.covariance
    traces = float(np.trace(first) + np.trace(second))
    # A channel that is the same for all points of a set, such as a dead one, is in no product, but adds rounding.
    vary = (np.diag(first) > 0) & (np.diag(second) > 0)
    if not vary.any():
        return traces
    first, second = first[np.ix_(vary, vary)], second[np.ix_(vary, vary)]
    values, vectors = np.linalg.eigh(first)
    # Points have one direction less than they are.
    values, vectors = values[-(one.count - 1) :], vectors[:, -(one.count - 1) :]
    kept = values > len(first) * _EPSILON * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])
    products = np.maximum(np.linalg.eigvalsh(root.T @ second @ root), 0)
    found = traces - 2 * float(np.sqrt(products).sum())
    left_out = float(np.abs(values[~kept]).sum() * np.trace(second))
    return found if found > _rounding(products, left_out, traces, len(first)) else 0.0


def _rounding(products: np.ndarray, left_out: float, traces: float, channels: int) -> float:
    """Return how large the covariances' part may be by rounding alone.

    Eigenvalues are off by `channels` units in the last place of the largest (Anderson et al., "LAPACK Users' Guide",
    4.7), and their roots accordingly: by more, the smaller they are. Directions that were left out would add at most
    the root of their trace times the other set's, by Cauchy and Schwarz.
    """
    off = channels * _EPSILON * float(products.max(initial=0))
    roots = float((off / np.sqrt(np.maximum(products, off))).sum()) if off else 0.0
    return 2 * (roots + float(np.sqrt(left_out))) + channels * _EPSILON * traces


def too_few(ones: int, others: int, channels: int) -> str | None:
    """Return in words why there are too few points for the distance to be one of distributions; None if there are not.

    >>> too_few(50, 5000, 508)
    '50 points in 508 channels have no spread in some directions: the distance is too large'
    """
    fewest = min(ones, others)
    if fewest > channels:
        return None
    return f"{fewest} points in {channels} channels have no spread in some directions: the distance is too large"


@dataclass(frozen=True, eq=False)
class AtInfinity:
    """A Fréchet distance, extrapolated.

    Attributes:
        distance: of infinitely many points.
        sizes: int64 [sizes]: of the subsets.
        distances: float64 [sizes]: of each subset from the reference.
        residual: the root of the mean of the squares of what the line leaves.
    """

    distance: float
    sizes: np.ndarray
    distances: np.ndarray
    residual: float


def at_infinity(reference: Moments, points: np.ndarray, seed: int, sizes: int = _SIZES) -> AtInfinity:
    """Extrapolate the distance of a set from a reference to infinitely many points of the set.

    Distances of random subsets are fitted by a line in 1 / size, which is read at 0: Chong and Forsyth, "Effectively
    unbiased FID and Inception Score and where to find them" (2020). Sizes are those of dgm-eval: evenly spaced from a
    tenth of the points, or 5,000, to all; from twice as many points as channels where that is more, as covariances
    of fewer are deficient and the distance is no line. The reference keeps its number of points, and the bias of that.

    Args:
        reference: of the real images, say.
        points: float [points, channels].
        seed: of the subsets.
        sizes: how many subsets.

    Raises:
        UsageError: another number of channels, NaN or infinity, or fewer than four points a channel.
    """
    check_points(points, "the points")
    check_channels(len(reference.mean), points.shape[1])
    count, channels = points.shape
    if count < 4 * channels:
        raise UsageError(
            f"{count} points in {channels} channels are too few to extrapolate from; {4 * channels} would do"
        )
    smallest = max(min(5000, count // 10), 2 * channels)
    generator = np.random.default_rng(seed)
    numbers = np.linspace(smallest, count, sizes).astype(np.int64)
    found = np.array(
        [distance(reference, Moments.of(points[np.sort(generator.permutation(count)[:n])])) for n in numbers]
    )
    slope, intercept = np.polyfit(1 / numbers, found, 1)
    left = found - (intercept + slope / numbers)
    return AtInfinity(float(intercept), numbers, found, float(np.sqrt((left**2).mean())))


def interval(ones: Sequence[Moments], others: Sequence[Moments], how: Resampling) -> tuple[float, float] | None:
    """Return the interval of the distance of two sets, by drawing their shards; None where a set has a single shard.

    Args:
        ones: of each shard of a set.
        others: of each shard of the other.
        how: seed, draws and level.

    Raises:
        UsageError: see `distance`.
    """
    if not can_resample(len(ones), len(others)):
        return None
    weights = zip(*how.weights(len(ones), len(others)), strict=True)
    drawn = np.array([distance(weighted(ones, first), weighted(others, second)) for first, second in weights])
    whole = np.array(distance(weighted(ones, np.ones(len(ones))), weighted(others, np.ones(len(others)))))
    low, high = how.interval(whole, drawn)
    return float(low), float(high)


def weighted(shards: Sequence[Moments], weights: np.ndarray) -> Moments:
    """Return the moments of the points of shards, each taken so many times.

    Args:
        weights: int [shards].
    """
    counts = weights * [shard.count for shard in shards]
    means = np.stack([shard.mean for shard in shards])
    mean = counts @ means / max(1, counts.sum())
    apart = means - mean
    scatter = (apart * counts[:, None]).T @ apart
    for shard, weight in zip(shards, weights, strict=True):
        if weight:
            scatter += weight * shard.scatter
    return Moments(int(counts.sum()), mean, scatter)
