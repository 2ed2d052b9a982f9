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
    """
    size = pictures.shape[-1]
    # More than these transformations reach, and the same for all: what one picture comes to must not depend on others.
    margin = min(size, size // 2 + 8)
    wide = nn.functional.pad(pictures, (margin,) * 4, mode="circular")
    # torch counts from -1 at the left edge to 1 at the right, of the wide picture and of the view.
    theta = by[:, :2, :].copy()
    theta[:, :, :2] *= size / (size + 2 * margin)
    theta[:, :, 2] *= 2 / (size + 2 * margin)
    where = torch.tensor(theta, dtype=pictures.dtype, device=pictures.device)
    grid = nn.functional.affine_grid(where, list(pictures.shape), align_corners=False)
    return nn.functional.grid_sample(wide, grid, align_corners=False)
