"""From a unit of a layer's map to pixels of the original image. Plain arithmetic, no torch."""

from __future__ import annotations

from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.network.layers import Axis, ReceptiveField


def unit_box(field: ReceptiveField, unit_y: int, unit_x: int, size: int) -> tuple[int, int, int, int]:
    """Return the receptive field of one unit, clipped to the network's input.

    Args:
        field: of the unit's layer.
        unit_y: row of the unit in the layer's map.
        unit_x: column.
        size: height and width of the network's input, in pixels.

    Returns:
        A box in pixels of the input.
    """
    x0, x1 = _clipped(field.x, unit_x, size)
    y0, y1 = _clipped(field.y, unit_y, size)
    return x0, y0, x1, y1


def field_box(field: ReceptiveField | None, unit: tuple[int | None, int | None], framing: Framing) -> Box | None:
    """Return the receptive field of a unit (row, column) in pixels of the original image, clipped
    to what the network saw; None where the layer has no map or its field is not known."""
    y, x = unit
    if field is None or y is None or x is None:
        return None
    return framing.to_original(unit_box(field, y, x, framing.crop))


def _clipped(axis: Axis | None, unit: int, length: int) -> tuple[int, int]:
    if axis is None:
        return 0, length
    start = axis.first + unit * axis.stride
    return min(max(start, 0), length), max(min(start + axis.size, length), 0)
