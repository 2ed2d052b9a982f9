"""A picture in a few numbers and words: its colours, its contrast, how its power falls with frequency, how it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exemplar_ray.data.preprocess import LUMA

# The words of a notebook that labelled pictures so, with its thresholds on levels of 255.
_CONTRAST, _BRIGHT, _DARK = 50.0, 150.0, 100.0


class Description(NamedTuple):
    """What a picture looks like. Colours and contrast are in levels of 255."""

    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    contrast: float
    """The standard deviation of its grey values."""
    spectral_slope: float
    """The exponent a of power ~ frequency^a, -2 for most photographs; NaN where there is nothing to be seen."""
    orientation: float
    """Of its lines: degrees from the horizontal, counter-clockwise, 0..180; NaN where it has none."""
    coherence: float
    """How much its lines lie that way: 0 for all directions alike, 1 for one."""

    @property
    def patterns(self) -> list[str]:
        """Return the words for it."""
        brightness = float(np.mean(self.mean_rgb))
        words = [
            ("High contrast/texture", self.contrast > _CONTRAST),
            ("Bright colors", brightness > _BRIGHT),
            ("Dark colors", brightness < _DARK),
        ]
        return [word for word, holds in words if holds]


def describe(pixels: np.ndarray) -> Description:
    """Describe a picture, uint8 [height, width, 3]."""
    values = pixels.astype(np.float64)
    grey = values @ np.array(LUMA)
    colours = values.reshape(-1, 3)
    orientation, coherence = _orientation(grey)
    red, green, blue = colours.mean(axis=0).tolist()
    deviations = colours.std(axis=0).tolist()
    return Description(
        (red, green, blue),
        (deviations[0], deviations[1], deviations[2]),
        float(grey.std()),
        _spectral_slope(grey),
        orientation,
        coherence,
    )


def together(descriptions: Sequence[Description]) -> Description:
    """Return the mean of descriptions; of orientations each counts by its coherence."""
    mean = [np.nanmean([of[at] for of in descriptions], axis=0) for at in range(3)]
    slopes = [of.spectral_slope for of in descriptions if not np.isnan(of.spectral_slope)]
    # Twice the angle: lines at 1 and at 179 degrees lie alike.
    turned = [of.coherence * np.exp(2j * np.radians(of.orientation)) for of in descriptions if of.coherence > 0]
    direction = complex(np.sum(turned)) / len(descriptions)
    return Description(
        tuple(mean[0].tolist()),
        tuple(mean[1].tolist()),
        float(mean[2]),
        float(np.mean(slopes)) if slopes else float("nan"),
        float(np.degrees(np.angle(direction)) / 2) % 180 if turned else float("nan"),
        abs(direction),
    )


class Apart(NamedTuple):
    """How far a picture's looks are from those of others: 0 for the same."""

    rgb: float
    """Between mean colours, in levels of 255: the root of the sum of squares."""
    contrast: float
    """What it has more, in levels of 255."""
    spectral_slope: float
    """By how much its power falls less with frequency."""
    orientation: float
    """Between the directions of lines, 0..90 degrees."""


def apart(picture: Description, others: Description) -> Apart:
    """Compare a picture's looks with others'."""
    turned = abs(picture.orientation - others.orientation) % 180
    return Apart(
        float(np.linalg.norm(np.subtract(picture.mean_rgb, others.mean_rgb))),
        picture.contrast - others.contrast,
        picture.spectral_slope - others.spectral_slope,
        min(turned, 180 - turned),
    )


def _spectral_slope(grey: np.ndarray) -> float:
    """Fit a line to the logarithms of frequency and power, each ring of frequencies once."""
    height, width = grey.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    ring = np.rint(frequency * min(height, width)).astype(int)
    rings = np.arange(2, min(height, width) // 2)
    if not len(rings) or not power.any():
        return float("nan")
    mean = np.bincount(ring.ravel(), power.ravel()) / np.maximum(np.bincount(ring.ravel()), 1)
    known = rings[mean[rings] > 0]
    if len(known) < 2:
        return float("nan")
    return float(np.polyfit(np.log(known), np.log(mean[known]), 1)[0])


def _orientation(grey: np.ndarray) -> tuple[float, float]:
    """Return the main orientation of lines and its coherence, from the structure tensor of the whole picture."""
    down, right = np.gradient(grey)
    xx, yy, xy = (right * right).mean(), (down * down).mean(), (right * down).mean()
    energy = xx + yy
    if energy == 0:
        return float("nan"), 0.0
    coherence = float(np.hypot(xx - yy, 2 * xy) / energy)
    # The gradient is across the line; rows count downwards, angles upwards.
    gradient = 0.5 * np.arctan2(-2 * xy, xx - yy)
    return float(np.degrees(gradient) + 90) % 180, coherence
