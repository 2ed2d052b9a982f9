"""The linear map between two layers' channels: as kernels, computed exactly from the weights.

A kernel says by how much one channel of a layer changes with one channel of the layer before, at each place around it:
the gradient of the unit with respect to its inputs, where every function that is not linear is replaced by the nearest
one that is (Voss et al., "Visualizing Weights", Distill 2021, expanded weights).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from exemplar_ray.network.affine import Gates, Open, Piece
from exemplar_ray.network.layers import Axis
from exemplar_ray.network.receptive_field import UntraceableError, WatchedOperations

_UNITS_AT_ONCE = 64


class Window(NamedTuple):
    """The part of a map that one unit is made of."""

    size: tuple[int, int]
    """Of a map in which there is a unit that sees no padding."""
    unit: tuple[int, int]
    """That unit's place in the next layer's map."""
    rows: slice
    columns: slice
    """What the unit sees."""


def field_of(piece: Piece) -> tuple[Axis, Axis] | None:
    """Find what a unit of a piece's end sees of its beginning, down and to the right; None where it sees all of it."""
    if len(piece.shape) != 3:
        return None
    x = torch.zeros((1, *piece.shape))
    watched = WatchedOperations(x)
    try:
        with torch.no_grad(), watched:
            known = watched.followed(piece(x, Open()))
    except UntraceableError:
        return None
    field = known.field if known is not None else None
    return (field.y, field.x) if field is not None and field.y is not None and field.x is not None else None


def window_of(piece: Piece) -> Window | None:
    """Find a unit that sees no padding; None where none does, or units have no place."""
    field = field_of(piece)
    if field is None:
        return None
    small = [_first(axis) for axis in field]
    if _runs_on(piece, (small[0][1].stop, small[1][1].stop)):
        return Window((small[0][1].stop, small[1][1].stop), (small[0][0], small[1][0]), small[0][1], small[1][1])
    # The network knows how large its maps are, as those do that shuffle channels by `view`.
    height, width = piece.shape[1:]
    (y, rows), (x, columns) = (_middle(axis, length) for axis, length in zip(field, (height, width), strict=True))
    inside = rows.start >= 0 and columns.start >= 0 and rows.stop <= height and columns.stop <= width
    return Window((height, width), (y, x), rows, columns) if inside else None


def seen_by(axis: Axis, unit: int) -> slice:
    """Return what a unit sees along one axis, with what is outside the map."""
    first = axis.first + unit * axis.stride
    return slice(first, first + axis.size)


def _first(axis: Axis) -> tuple[int, slice]:
    unit = -(axis.first // axis.stride) if axis.first < 0 else 0
    return unit, seen_by(axis, unit)


def _middle(axis: Axis, length: int) -> tuple[int, slice]:
    unit = ((length - axis.size) // 2 - axis.first) // axis.stride
    return unit, seen_by(axis, unit)


def _runs_on(piece: Piece, size: tuple[int, int]) -> bool:
    try:
        with torch.no_grad():
            piece(torch.zeros(1, piece.shape[0], *size), Open())
    except RuntimeError:
        return False
    return True


def kernels(piece: Piece, gates: Gates, channels: Tensor | None = None) -> Tensor:
    """Compute the linear map of a piece.

    Args:
        piece: between the two layers.
        gates: what stands for its functions that are not linear: the same for every place.
        channels: int64 [units]: which channels of its end; None for all.

    Returns:
        float32 [units, channels of its beginning, height, width]: what each channel of its end is made of, around the
        place of its unit; of vectors height and width are 1, of a vector made of maps those of the map.
    """
    window = window_of(piece)
    shape = piece.shape if window is None else (piece.shape[0], *window.size)
    with torch.no_grad():
        end = piece(torch.zeros(1, *shape), gates)
    wanted = torch.arange(end.shape[1]) if channels is None else channels
    found = []
    for few in wanted.split(_UNITS_AT_ONCE):
        x = torch.zeros(len(few), *shape, requires_grad=True)
        end = piece(x, gates)
        if end.dim() == 4:
            y, column = (end.shape[2] // 2, end.shape[3] // 2) if window is None else window.unit
            end = end[:, :, y, column]
        end[torch.arange(len(few)), few].sum().backward()
        assert x.grad is not None
        found.append(x.grad if window is None else x.grad[:, :, window.rows, window.columns])
    result = torch.cat(found)
    return result[:, :, None, None] if result.dim() == 2 else result
