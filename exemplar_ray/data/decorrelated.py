"""Decorrelated colours: those in which a natural image's red, green and blue do not vary together."""

from __future__ import annotations

import numpy as np

# How colours vary together in ImageNet's images: a square root of their covariance, as Lucid has it
# (tensorflow/lucid, optvis/param/color.py: color_correlation_svd_sqrt), scaled so that its longest column is 1.
_COLOUR_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = _COLOUR_CORRELATION / np.linalg.norm(_COLOUR_CORRELATION, axis=0).max()
"""From decorrelated colours to red, green and blue: float64 [3, 3], rows are red, green and blue."""


def decorrelating(channels: int) -> np.ndarray:
    """Return the way back: float64 [3, channels], from red, green and blue, or from grey, which is all three alike."""
    back = np.linalg.inv(COLOURS)
    return back if channels == 3 else back.sum(axis=1, keepdims=True)
