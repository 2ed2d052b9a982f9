"""What each input contributes to a unit on an image: exactly, as from layer to layer a network is piecewise linear.

Where every function is replaced by its tangent at the image, the unit is a sum: of each input times the gradient, and
of what the biases come to. It adds up to the unit before its ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exemplar_ray.network.affine import Given, Piece, Recorded

_UNITS_AT_ONCE = 16


class Unit(NamedTuple):
    """One number of a layer on one image."""

    image: int
    """Which of the images that are given."""
    channel: int
    place: tuple[int, ...]
    """(y, x); empty where there is no map."""


class Contributions(NamedTuple):
    """What some units are made of."""

    of_inputs: Tensor
    """float32 [units, channels of the layer before, height, width], or [units, channels]: at each place of its map."""
    of_biases: Tensor
    """float32 [units]: what is there without any input."""
    values: Tensor
    """float32 [units]: what the units are before their ReLU."""


def contributions(piece: Piece, inputs: Tensor, units: Sequence[Unit]) -> Contributions:
    """Take some units apart.

    Args:
        piece: from the layer before to what the layer is before its ReLU.
        inputs: float32 [images, channels of the layer before, ...]: its values.
        units: which.
    """
    found = [
        _few(piece, inputs, units[first : first + _UNITS_AT_ONCE]) for first in range(0, len(units), _UNITS_AT_ONCE)
    ]
    return Contributions(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _few(piece: Piece, inputs: Tensor, units: Sequence[Unit]) -> Contributions:
    x = inputs[[unit.image for unit in units]].clone().requires_grad_(True)
    recorded = Recorded()
    values = _at(piece(x, recorded), units)
    values.sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        biases = _at(piece(torch.zeros_like(x), Given(recorded.gates)), units)
        return Contributions(x.grad * x, biases, values.detach())


def without(piece: Piece, inputs: Tensor, units: Sequence[Unit], removed: Sequence[Tensor]) -> Tensor:
    """Return what units become without some of their inputs: float32 [units], before the ReLU.

    Args:
        removed: int64, of each unit the channels of the layer before that are set to 0 on the whole map.
    """
    found = []
    for first in range(0, len(units), _UNITS_AT_ONCE):
        few = units[first : first + _UNITS_AT_ONCE]
        x = inputs[[unit.image for unit in few]].clone()
        for number, channels in enumerate(removed[first : first + _UNITS_AT_ONCE]):
            x[number, channels] = 0
        with torch.no_grad():
            found.append(_at(piece(x, Recorded()), few))
    return torch.cat(found)


def _at(end: Tensor, units: Sequence[Unit]) -> Tensor:
    return torch.stack([end[(number, unit.channel, *unit.place)] for number, unit in enumerate(units)])
