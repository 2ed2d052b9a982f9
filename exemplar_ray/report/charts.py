"""What the charts of a channel's page draw, in the units of their SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BARS = 60
WIDTH, HEIGHT = 440, 130
"""Of the bars' area. Labels and marks are around it."""


@dataclass(frozen=True)
class HistogramChart:
    """A histogram of activations. x goes to the right, y downwards; the bars stand on y = HEIGHT."""

    outline: str
    """SVG path of the bars."""
    images: int
    lowest: float
    highest: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    """Heights go by log(1 + images): a channel's strongest images are few."""
    marks: list[tuple[str, str]]
    """(sample, SVG path of a tick for each of its exemplars, from 0 down to 7), in the order of results."""


def histogram_chart(
    low: np.ndarray, high: np.ndarray, images: np.ndarray, marks: Mapping[str, Sequence[float]]
) -> HistogramChart | None:
    """Draw one channel's histogram with its exemplars marked; None where there are no images.

    Args:
        low: float [bins], where bins with images begin; equal to `high` where all are at one value.
        high: float [bins], where they end.
        images: int [bins].
        marks: {sample: activations of its exemplars}.
    """
    if not len(images):
        return None
    low, high = low.astype(np.float64), high.astype(np.float64)
    shown = [activation for several in marks.values() for activation in several]
    lowest, highest = min([low.min(), *shown]), max([high.max(), *shown])
    if highest == lowest:
        lowest, highest = lowest - 0.5, highest + 0.5
    counts = _in_bars(low, high, images, np.linspace(lowest, highest, BARS + 1))
    highest_bar = np.log1p(counts.max())

    def y(images: float) -> float:
        return round(HEIGHT * (1 - float(np.log1p(images) / highest_bar)), 1)

    def x(value: float) -> float:
        return round(WIDTH * (value - lowest) / (highest - lowest), 1)

    outline = f"M0 {HEIGHT}" + "".join(
        f"V{y(count)}H{(bar + 1) * WIDTH / BARS:.1f}" for bar, count in enumerate(counts.tolist())
    )
    tens = [10**power for power in range(19) if 10**power <= counts.max()]
    return HistogramChart(
        outline=f"{outline}V{HEIGHT}Z",
        images=int(images.sum()),
        lowest=float(lowest),
        highest=float(highest),
        x_ticks=[(x(value), f"{value:g}") for value in round_values(lowest, highest)],
        y_ticks=[(y(ten), f"{ten:,}") for ten in tens],
        marks=[(name, "".join(f"M{x(value)} 0v7" for value in values)) for name, values in marks.items() if values],
    )


def _in_bars(low: np.ndarray, high: np.ndarray, images: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Spread the images of each bin evenly over the bars that it overlaps: float64 [bars]."""
    counts = np.zeros(len(edges) - 1)
    at_one = high == low
    where = np.clip(np.searchsorted(edges, low[at_one], side="right") - 1, 0, len(counts) - 1)
    np.add.at(counts, where, images[at_one])
    low, high, images = (values[~at_one, None] for values in (low, high, images))
    overlap = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    return counts + (images * np.clip(overlap, 0, None) / (high - low)).sum(axis=0)


def round_values(lowest: float, highest: float, most: int = 5) -> list[float]:
    """Return round numbers from `lowest` to `highest` for an axis, at most `most` + 1.

    >>> round_values(0, 12.3)
    [0.0, 5.0, 10.0]
    >>> round_values(-0.3, 0.31)
    [-0.2, 0.0, 0.2]
    """
    rough = (highest - lowest) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(lowest / step - 1e-9)
    last = math.floor(highest / step + 1e-9)
    # + 0 turns -0 into 0. 12 digits hide that steps are binary fractions.
    return [float(f"{number * step:.12g}") + 0.0 for number in range(first, last + 1)]
