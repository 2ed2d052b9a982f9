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

    from exemplar_ray.network.layers import Layer
    from exemplar_ray.network.layouts import Reading

Unit = tuple[int, int]
"""Row and column in a layer's map."""


@dataclass(frozen=True)
class Statistic:
    """One way to pool a map. A layer without a map (logits) is pooled already, and stays as it is."""

    words: str
    """What it is, for people."""
    pool: Callable[[Tensor], Tensor]
    """From float32 [images, channels, height, width] to [images, channels]; from the class token, which is float32
    [images, channels], where it is of that."""
    pool_pre_relu: Callable[[Tensor], Tensor] | None = None
    """Pools what the map was before its ReLU: above 0 exactly where the statistic is above 0 after it. None if there
    is no such thing."""
    unit: Callable[[tuple[int, int], Unit], Unit] | None = None
    """From the map's size and its strongest unit to the unit whose activation the statistic is. None if it is of
    many units."""
    of_class_token: bool = False
    """Whether it is of the class token, which stands before the map's tokens."""


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _max(maps: Tensor) -> Tensor:
    return maps.amax(dim=(2, 3))


def _center(maps: Tensor) -> Tensor:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]


def _as_it_is(class_token: Tensor) -> Tensor:
    return class_token


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
    "cls": Statistic("the class token's", _as_it_is, _as_it_is, of_class_token=True),
}


def pooled(statistic: Statistic, reading: Reading) -> Tensor:
    """Return a copy of a layer's pooled output, [images, channels]; logits are pooled already."""
    return _applied(statistic.pool, statistic, reading)


def pooled_pre_relu(statistic: Statistic, reading: Reading) -> Tensor | None:
    """Return the same of what the output was before its ReLU; None if there is no such thing."""
    return None if statistic.pool_pre_relu is None else _applied(statistic.pool_pre_relu, statistic, reading)


def _applied(pool: Callable[[Tensor], Tensor], statistic: Statistic, reading: Reading) -> Tensor:
    if statistic.of_class_token:
        if reading.prefix is None:
            raise ValueError("the layer has no class token")
        return pool(reading.prefix[:, 0]).clone()
    return (pool(reading.maps) if reading.maps.dim() == 4 else reading.maps).clone()


def check_statistics(statistics: Sequence[str]) -> None:
    """Refuse a statistic that is not in `STATISTICS`.

    Raises:
        UsageError: with near matches.
    """
    for name in statistics:
        if name not in STATISTICS:
            raise UsageError(f"unknown statistic '{name}'; {near_matches(name, STATISTICS)}")


def refuse_missing_class_token(statistics: Sequence[str], layers: Sequence[Layer]) -> None:
    """Refuse a statistic of the class token where a layer has none.

    Raises:
        UsageError: which layer.
    """
    for name in statistics:
        for layer in layers if STATISTICS[name].of_class_token else ():
            if not layer.prefix_tokens:
                raise UsageError(
                    f"layer '{layer.name}' has no class token, so there is no statistic '{name}' of it; leave out "
                    f"--statistic {name}, or run that layer by itself"
                )
