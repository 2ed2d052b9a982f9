"""What a comparison is of: arrays of points that can be compared, or one line that says why not."""

from __future__ import annotations

import numpy as np

from exemplar_ray.errors import UsageError

_VALUES_AT_ONCE = 1 << 22


def check_points(points: np.ndarray, name: str) -> None:
    """Refuse what is no set of points.

    Args:
        points: float [points, channels].
        name: what messages call the set.

    Raises:
        UsageError: not two axes, not floating-point numbers, no points, or NaN or infinity among them.
    """
    if points.ndim != 2 or not np.issubdtype(points.dtype, np.floating):
        raise UsageError(
            f"{name} are not points: floats [points, channels] are needed, not {points.dtype} {points.shape}"
        )
    if not points.size:
        raise UsageError(
            f"{name} are {points.shape[0]} points of {points.shape[1]} channels: there is nothing to compare"
        )
    step = max(1, _VALUES_AT_ONCE // points.shape[1])
    for first in range(0, len(points), step):
        finite = np.isfinite(points[first : first + step]).all(axis=1)
        if not finite.all():
            row = first + int(np.flatnonzero(~finite)[0])
            raise UsageError(f"{name} have NaN or infinity in row {row}; leave out what is not finite")


def check_channels(ones: int, others: int) -> None:
    """Refuse to compare points of another number of channels.

    Raises:
        UsageError: the numbers differ.
    """
    if ones != others:
        raise UsageError(f"one set has {ones} channels, the other {others}: compare the same layer of the same network")


def check_pair(ones: np.ndarray, others: np.ndarray, names: tuple[str, str]) -> None:
    """Refuse two sets that cannot be compared.

    Raises:
        UsageError: see `check_points` and `check_channels`.
    """
    for points, name in zip((ones, others), names, strict=True):
        check_points(points, name)
    check_channels(ones.shape[1], others.shape[1])
