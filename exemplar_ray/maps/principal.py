"""Principal components, and where points lie along them: each by itself, whoever comes along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exemplar_ray.errors import UsageError
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.moments import Moments

# Beyond so many numbers a point, the covariance of all points is too large; as many drawn points' inner products tell
# the leading components then.
WIDEST = 2048

# So many numbers of points, and of their projections, are worked on at a time.
_NUMBERS_AT_ONCE = 2**22
_PROJECTED_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class Components:
    """The leading principal components of a set of points.

    Attributes:
        mean: float64 [channels]
        directions: float64 [channels, components]: of length 1, the one that holds most first. The entry that is
            furthest from 0 is positive.
        share: of the variance that they hold, 0 to 1.
        of: how many points they were computed from.
    """

    mean: np.ndarray
    directions: np.ndarray
    share: float
    of: int


def components_of(points: np.ndarray, count: int, seed: int) -> Components:
    """Compute the leading principal components.

    Args:
        points: float [points, channels], finite.
        count: how many at most; there are no more than channels, or points less one.
        seed: which points are drawn where points have more than `WIDEST` channels.

    Raises:
        UsageError: all points are the same.
    """
    if points.shape[1] > WIDEST:
        points = points[drawn(len(points), WIDEST, seed)]
    refuse_all_the_same(points)
    if points.shape[1] > WIDEST:
        return _of_wide(points, count)
    moments = Moments.of(points)
    variances, directions = np.linalg.eigh(moments.scatter)
    kept = slice(None, -1 - min(count, len(points) - 1), -1)
    share = float(variances[kept].sum() / moments.scatter.trace())
    return Components(moments.mean, _signed(directions[:, kept]), min(share, 1.0), len(points))


def refuse_all_the_same(points: np.ndarray) -> None:
    """Refuse points between which there is nothing.

    Raises:
        UsageError: all are the same.
    """
    rows = max(1, _NUMBERS_AT_ONCE // points.shape[1])
    if all((points[first : first + rows] == points[0]).all() for first in range(0, len(points), rows)):
        raise UsageError("all points are the same: there is no map of them")


def _of_wide(points: np.ndarray, count: int) -> Components:
    """By the points' inner products, of which there are fewer than of channels."""
    mean = points.mean(axis=0, dtype=np.float64)
    columns = max(1, _NUMBERS_AT_ONCE // len(points))
    parts = [slice(first, first + columns) for first in range(0, points.shape[1], columns)]
    products = np.zeros((len(points), len(points)))
    for part in parts:
        apart = points[:, part] - mean[part]
        products += apart @ apart.T
    variances, of_points = np.linalg.eigh(products)
    kept = slice(None, -1 - min(count, len(points) - 1), -1)
    directions = np.concatenate([(points[:, part] - mean[part]).T @ of_points[:, kept] for part in parts])
    lengths = np.linalg.norm(directions, axis=0)
    # Points in a plane have no third component: its direction is no direction.
    directions = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 1e-9 * lengths[0])
    share = float(variances[kept].sum() / products.trace())
    return Components(mean, _signed(directions), min(share, 1.0), len(points))


def _signed(directions: np.ndarray) -> np.ndarray:
    """An eigenvector may come out either way round; choose one."""
    furthest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return np.ascontiguousarray(directions * np.where(furthest < 0, -1.0, 1.0))


def reduced(points: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return where points lie along directions; or the points as they are, where there are none.

    A product of matrices sums in an order that depends on its shape and on the number of threads, so that the last bits
    of a row depend on the others. Here each number is one sum over the channels, in their order, of one rounded product
    each: nothing else comes in.

    Args:
        points: float [points, channels].
        mean: float64 [channels].
        directions: float64 [channels, components].

    Returns:
        float64 [points, components].
    """
    channels, components = directions.shape
    if not components:
        return points.astype(np.float64)
    found = np.zeros((len(points), components))
    rows = max(1, min(_PROJECTED_AT_ONCE // components, _NUMBERS_AT_ONCE // channels))
    for first in range(0, len(points), rows):
        some = np.ascontiguousarray(points[first : first + rows].T, np.float64) - mean[:, None]
        total = found[first : first + rows]
        product = np.empty_like(total)
        for of_channel, direction in zip(some, directions, strict=True):
            np.multiply(of_channel[:, None], direction, out=product)
            total += product
    return found
