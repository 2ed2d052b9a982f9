"""What happens to a picture before the network sees it, another thing at every step: what is answered to
at one place, one size and one angle only is no feature.

Each picture has its own. Those of Lucid (tensorflow/lucid, optvis/transform.py: standard_transforms), but that they are
one resampling, and that pictures go on periodically where Lucid fills up with grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exemplar_ray.visualize.draws import whole_numbers

Transformation = Callable[[Iterator[int]], np.ndarray]
"""From random whole numbers to float64 [3, 3]: which place of the picture, in pixels from its middle (x, y, 1), is seen
at a place of the view."""


def jitter(pixels: int) -> Transformation:
    """Move by up to half as many whole pixels, as a random crop that leaves out `pixels` does."""

    def matrix(numbers: Iterator[int]) -> np.ndarray:
        x, y = (next(numbers) % (pixels + 1) - pixels // 2 for _ in range(2))
        return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])

    return matrix


def scaled(factors: Sequence[float]) -> Transformation:
    """Enlarge by one of some factors."""

    def matrix(numbers: Iterator[int]) -> np.ndarray:
        factor = factors[next(numbers) % len(factors)]
        return np.diag([1 / factor, 1 / factor, 1.0])

    return matrix


def rotated(degrees: Sequence[float]) -> Transformation:
    """Turn by one of some angles."""

    def matrix(numbers: Iterator[int]) -> np.ndarray:
        angle = math.radians(degrees[next(numbers) % len(degrees)])
        cosine, sine = math.cos(angle), math.sin(angle)
        return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])

    return matrix


LUCIDS: tuple[Transformation, ...] = (
    jitter(8),
    scaled([1 + (i - 5) / 50 for i in range(11)]),
    rotated([*range(-10, 11), *[0] * 5]),
    jitter(4),
)

# How far beyond its edges they look at a picture: a share of its side, from turning and making smaller, and pixels.
_WIDENED, _MOVED = 0.145, 9


def matrices(keys: Sequence[str], purpose: str, transformations: Sequence[Transformation] = LUCIDS) -> np.ndarray:
    """Return what each picture is transformed by: float64 [pictures, 3, 3].

    Args:
        keys: of the pictures.
        purpose: what it is for, such as the step: another transformation for each.
    """
    found = []
    for key in keys:
        numbers = whole_numbers(key, purpose)
        matrix = np.eye(3)
        for transformation in transformations:
            matrix = matrix @ transformation(numbers)
        found.append(matrix)
    return np.stack(found)


def transformed(pictures: Tensor, by: np.ndarray) -> Tensor:
    """Return pictures as they are seen, resampled bilinearly.

    Args:
        pictures: float [pictures, colours, size, size], periodic.
        by: see `matrices`.

    Raises:
        ValueError: a view looks farther beyond a picture than those of `LUCIDS` do.
    """
    size = pictures.shape[-1]
    # The same for all, whatever they are moved by: what one picture comes to must not depend on others.
    margin = min(size, math.ceil(_WIDENED * size) + _MOVED)
    if _reach(by, size) > size / 2 + margin - 1:
        raise ValueError(f"a transformation reaches more than {margin} pixels beyond a picture of {size}")
    wide = nn.functional.pad(pictures, (margin,) * 4, mode="circular")
    # torch counts from -1 at the left edge of the wide picture to 1 at its right.
    scaled_by = by[:, :2] * (2 / (size + 2 * margin))
    x_by, y_by, moved = torch.tensor(scaled_by, dtype=pictures.dtype, device=pictures.device)[:, None, None].unbind(-1)
    place = torch.arange(size, dtype=pictures.dtype, device=pictures.device) - (size - 1) / 2
    grid = x_by * place[None, None, :, None] + (y_by * place[None, :, None, None] + moved)
    return nn.functional.grid_sample(wide, grid, align_corners=False)


def _reach(by: np.ndarray, size: int) -> float:
    """Return how far from the picture's middle the views look, to the left, right, up or down."""
    corners = np.array([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)]) * [(size - 1) / 2, (size - 1) / 2, 1.0]
    return float(np.abs(by[:, :2] @ corners.T).max())
