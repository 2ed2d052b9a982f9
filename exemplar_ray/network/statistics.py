"""Statistics: how a channel's map is pooled to the one number that its images are ranked by.

A new statistic is one entry in `STATISTICS`; everything that is to be said of it stands there. Imports no torch: the
functions work on the tensors that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exemplar_ray.errors import UsageError, near_matches

if TYPE_CHECKING:
    from torch import Tensor

Unit = tuple[int, int]
"""Row and column in a layer's map."""


@dataclass(frozen=True)
class Statistic:
    """One way to pool a map. A layer without a map (logits) is pooled already, and stays as it is."""

    words: str
    """What it is, for people."""
    pool: Callable[[Tensor], Tensor]
    """From float32 [images, channels, height, width] to [images, channels]."""
    pool_pre_relu: Callable[[Tensor], Tensor] | None = None
    """Pools what the map was before its ReLU: above 0 exactly where the statistic is above 0 after it. None if there
    is no such thing."""
    unit: Callable[[tuple[int, int], Unit], Unit] | None = None
    """From the map's size and its strongest unit to the unit whose activation the statistic is. None if it is of
    many units."""


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _max(maps: Tensor) -> Tensor:
    return maps.amax(dim=(2, 3))


def _center(maps: Tensor) -> Tensor:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]


STATISTICS: dict[str, Statistic] = {
    # A mean over what a ReLU leaves is above 0 as soon as one unit is.
    "mean": Statistic("mean over the channel's map", _mean, _max),
    "max": Statistic("maximum of the channel's map", _max, _max, unit=lambda size, peak: peak),
    # The unit that feature visualisation of a neuron optimises, as in Lucid and Lucent.
    "center": Statistic(
        "the unit in the middle of the channel's map",
        _center,
        _center,
        unit=lambda size, peak: (size[0] // 2, size[1] // 2),
    ),
}


def pooled(pool: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """Return a copy of a layer's pooled output, [images, channels]; logits are pooled already."""
    return (pool(output) if output.dim() == 4 else output).clone()


def check_statistics(statistics: Sequence[str]) -> None:
    """Refuse a statistic that is not in `STATISTICS`.

    Raises:
        UsageError: with near matches.
    """
    for name in statistics:
        if name not in STATISTICS:
            raise UsageError(f"unknown statistic '{name}'; {near_matches(name, STATISTICS)}")
