"""Which axes of a layer's output are its channels, and which are its map: found out by asking the network.

Three things tell, and none is believed against another:

- the operations that made the output, followed from the image on (`receptive_field`);
- an image of another size: axes of a map grow and shrink with it, channels do not;
- other content in a corner of the image: along the map's axes the response moves with the corner.

What kind of layer it is contradicts at most: a convolution names its channels first, a linear layer last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exemplar_ray.network.layers import NCHW, NHWC, TOKENS

# How far a response must move along an axis, as a share of its length, to have followed the corner.
_MOVED = 0.04
_MOVED_ALONE = 0.3
# Along other axes it may move by so much of that.
_STAYED = 0.5

# How near to the image's corners the tokens that answer to them must lie in a map, and how much nearer than in the next
# best way to lay them out, as a share of what is more than by chance.
_NEAR, _CLEARLY = 0.52, 0.05
# Class and register tokens are few.
_MOST_LEFT_OVER = 8
# Images are square. Of a map four times as long, with each row cut in two, the corners would hardly tell.
_LONGEST = 2

_MAP_AXES = {NCHW: (2, 3), NHWC: (1, 2)}


class Grid(NamedTuple):
    """Where the tokens of a map stand among all tokens: so many before them, then row by row."""

    prefix: int
    height: int
    width: int


ANOTHER_ORDER = "another order"
"""What is spoken for where a map's axes stand otherwise than in every known layout."""


def from_operations(places: tuple[int, int] | None) -> str | None:
    """Return the layout that has height and width at these axes; None if they are not known.

    Returns:
        A layout, or `ANOTHER_ORDER` where the map's axes stand otherwise.
    """
    if places is None:
        return None
    return next((layout for layout, axes in _MAP_AXES.items() if axes == places), ANOTHER_ORDER)


def from_sizes(shape: Sequence[int], of_smaller: Sequence[int]) -> str | None:
    """Return the layout whose map shrinks with the image.

    Args:
        shape: of the layer's output.
        of_smaller: the same for an image of less height and still less width.

    Returns:
        A layout; `ANOTHER_ORDER` where other axes shrank; None if too few did to tell.
    """
    if len(shape) != len(of_smaller):
        return ANOTHER_ORDER
    shrank = {axis for axis, (one, other) in enumerate(zip(shape, of_smaller, strict=True)) if axis and one != other}
    if not shrank:
        return None
    if len(shape) == 3:
        return TOKENS if shrank == {1} else ANOTHER_ORDER
    fitting = [layout for layout, axes in _MAP_AXES.items() if shrank <= set(axes)]
    if len(fitting) != 1:
        return None if fitting else ANOTHER_ORDER
    # The width shrank more than the height.
    y, x = (of_smaller[axis] / shape[axis] for axis in _MAP_AXES[fitting[0]])
    return fitting[0] if y >= x else ANOTHER_ORDER


# Content ---------------------------------------------------------------------------------

# Top left, top right, bottom left, bottom right: as shares of the room beside a patch.
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def with_other_corners(image: Tensor, size: int) -> Tensor:
    """Return copies of an image whose pixels are all half the scale away in one corner each.

    Args:
        image: uint8 [height, width, channels].
        size: height and width of the corner, in pixels.

    Returns:
        uint8 [4, height, width, channels]: top left, top right, bottom left, bottom right.
    """
    height, width, _ = image.shape
    changed = image.repeat(len(_CORNERS), 1, 1, 1)
    for copy, (down, right) in zip(changed, _CORNERS, strict=True):
        y, x = down * (height - size), right * (width - size)
        copy[y : y + size, x : x + size] ^= 128
    return changed


class Responses(NamedTuple):
    """How a layer's output responds to other corners: the sum of what changed, for every index of every axis."""

    along: tuple[Tensor, ...]
    """float64 [4, length] for each axis behind the first."""


def responses(unchanged: Tensor, changed: Tensor) -> Responses:
    """Compare a layer's output for an image with those for the four images of `with_other_corners`.

    Args:
        unchanged: float [1, ...].
        changed: float [4, ...].
    """
    difference = torch.nan_to_num((changed.double() - unchanged.double()).abs(), posinf=0.0)
    axes = range(1, difference.dim())
    return Responses(tuple(difference.sum(dim=[a for a in axes if a != axis]) for axis in axes))


def from_content(seen: Responses) -> str | None:
    """Return the layout along whose map the response moves with the corner; None if it moves along none, or `another
    order` where it moves along other axes."""
    lengths = [along.shape[1] for along in seen.along]
    of_one_unit = [layout for layout, axes in _MAP_AXES.items() if all(lengths[axis - 1] == 1 for axis in axes)]
    if of_one_unit:
        # Of a map of one unit only the channels are left, wherever the response moves among them.
        return of_one_unit[0]
    down, right = ([_movement(along, axis) for along in seen.along] for axis in (0, 1))
    fitting = [layout for layout, (y, x) in _MAP_AXES.items() if _follows(down, right, lengths, y - 1, x - 1)]
    return fitting[0] if len(fitting) == 1 else None


def _movement(along: Tensor, direction: int) -> float:
    """Return how far the response's centre moves along an axis from upper to lower corners (direction 0), or from left
    to right ones (1), as a share of the axis's length."""
    length = along.shape[1]
    total = along.sum(dim=1)
    if length == 1 or not bool((total > 0).all()):
        return 0.0
    centres = (along * torch.arange(length, dtype=along.dtype)).sum(dim=1) / total / (length - 1)
    before = [i for i, corner in enumerate(_CORNERS) if corner[direction] == 0]
    after = [i for i, corner in enumerate(_CORNERS) if corner[direction] == 1]
    return float(centres[after].mean() - centres[before].mean())


def _follows(down: Sequence[float], right: Sequence[float], lengths: Sequence[int], y: int, x: int) -> bool:
    """Whether the response moves along axis y with the corner's height, along x with its width, and else stays."""
    moved = [movement for movement, axis in ((down[y], y), (right[x], x)) if lengths[axis] > 1]
    # One axis alone tells little: channels, too, may answer more to what is above.
    if min(moved) < (_MOVED if len(moved) == 2 else _MOVED_ALONE):
        return False
    others = [right[y], down[x], *(m[k] for m in (down, right) for k in range(3) if k not in (y, x))]
    return max(map(abs, others)) <= _STAYED * min(moved)


def grid_from_content(seen: Responses) -> Grid | None:
    """Return where the tokens of a map stand, for an output [images, tokens, channels]; None if that cannot be told.

    Of all ways to lay the tokens out, with some left over before or behind, row by row or column by column, it is the
    one in which the tokens that answer to a corner of the image lie nearest to that corner.
    """
    tokens = seen.along[0]
    if not bool((tokens.sum(dim=1) > 0).all()):
        return None
    scored = sorted(((_nearness(tokens, way), way) for way in _ways(tokens.shape[1])), reverse=True)
    if not scored or scored[0][0] < _NEAR:
        return None
    (best, way), others = scored[0], scored[1:]
    if others and best - others[0][0] < _CLEARLY * (best - 0.5):
        return None
    return way.grid if way.by_rows and not way.left_over else None


class _Way(NamedTuple):
    """One way to lay tokens out."""

    grid: Grid
    by_rows: bool
    left_over: int
    """Tokens behind those of the map."""


def _ways(tokens: int) -> Iterator[_Way]:
    """Yield the ways to lay so many tokens out as a map that is not very long."""
    for prefix in range(min(_MOST_LEFT_OVER, tokens) + 1):
        for left_over in range(min(_MOST_LEFT_OVER, tokens - prefix) + 1):
            of_map = tokens - prefix - left_over
            for height in range(2, of_map // 2 + 1):
                width = of_map // height
                if height * width == of_map and max(height, width) <= _LONGEST * min(height, width):
                    grid = Grid(prefix, height, width)
                    yield from (_Way(grid, by_rows, left_over) for by_rows in (True, False))


def _nearness(tokens: Tensor, way: _Way) -> float:
    """Return how near the tokens that answer to the image's corners lie to these: 1 if they are the corners, 0.5 if all
    answer alike.

    Args:
        tokens: float64 [4, tokens]: the responses.
    """
    prefix, height, width = way.grid
    of_map = tokens[:, prefix : prefix + height * width]
    maps = of_map.unflatten(1, (height, width)) if way.by_rows else of_map.unflatten(1, (width, height)).mT
    # Of no place, so near to every corner by chance.
    outside = tokens.sum(dim=1) - of_map.sum(dim=1)
    y, x = torch.linspace(0, 1, height, dtype=tokens.dtype), torch.linspace(0, 1, width, dtype=tokens.dtype)
    nearness = []
    for corner, (down, right) in enumerate(_CORNERS):
        near = 1 - ((y - down).abs()[:, None] + (x - right).abs()[None]) / 2
        nearness.append(float((maps[corner] * near).sum() + 0.5 * outside[corner]) / float(tokens[corner].sum()))
    return sum(nearness) / len(nearness) if min(nearness) > 0.5 else 0.0


def square_grid(tokens: int, prefix: int) -> Grid | None:
    """Return the grid of a square image's tokens where so many stand before them; None if they make up no square."""
    side = isqrt(max(tokens - prefix, 0))
    return Grid(prefix, side, side) if side and side * side == tokens - prefix else None


# The layer's kind ------------------------------------------------------------------------


def channels_axis_of(module: nn.Module) -> int | None:
    """Return where a kind of layer says that its channels are: 1, or -1 for last; None of others."""
    if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return 1
    if isinstance(module, nn.Linear):
        return -1
    # Such as torchvision's LayerNorm2d, which inherits and moves the axes itself, are asked.
    return -1 if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 else None


def contradicts(module: nn.Module, layout: str) -> bool:
    """Whether a layer's kind speaks against a layout."""
    axis = channels_axis_of(module)
    return axis is not None and (axis == 1) != (layout == NCHW)
