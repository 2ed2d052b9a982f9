"""Kernels as small pictures: red excites, blue inhibits, white is nothing."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# ColorBrewer's RdBu (Brewer 2003), from the strongest inhibition to the strongest excitation.
_COLOURS = np.array(
    [(5, 113, 176), (146, 197, 222), (247, 247, 247), (244, 165, 130), (202, 0, 32)],
    np.float64,
)


def coloured(kernel: np.ndarray, strongest: float) -> np.ndarray:
    """Colour a kernel: uint8 [height, width, 3].

    Args:
        kernel: float [height, width].
        strongest: the absolute weight that has the strongest colour; stronger ones have it, too.
    """
    place = np.clip(kernel / strongest if strongest else 0 * kernel, -1, 1) * 2 + 2
    low = np.clip(np.floor(place).astype(int), 0, len(_COLOURS) - 2)
    part = (place - low)[..., None]
    return np.rint(_COLOURS[low] * (1 - part) + _COLOURS[low + 1] * part).astype(np.uint8)


def kernel_picture(kernel: np.ndarray, strongest: float) -> str:
    """Return a kernel as a picture of one pixel a weight: a `data:` address."""
    file = io.BytesIO()
    Image.fromarray(coloured(kernel, strongest)).quantize(256, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
