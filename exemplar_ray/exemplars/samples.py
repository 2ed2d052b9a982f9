"""Which images of a channel are shown: its strongest, its weakest, a random few, some of a percentile.

Random images and those of a percentile are drawn from the `sampled_images` of the data set with the
lowest priorities. An image's priority is a hash of its bytes, the same for every channel, so
that a few images serve all of them. Sampling by lowest hash is bottom-k sampling (Cohen and Kaplan, "Summarizing Data
Using Bottom-k Sketches", PODC 2007). The scan keeps these images' activations, so drawing needs
no second pass and depends neither on how images are split into shards nor on their order. Numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from exemplar_ray.exemplars.sample_names import RANDOM, percentile_of

# Samples are drawn from so many images, and at least so many a wanted exemplar: a band is one
# percent of them, twice as many as are shown.
_SAMPLED_IMAGES = 2000
_SAMPLED_A_RANK = 200

# A scan keeps the images below a priority that so many more are expected to be below. Every shard
# then has its share of the lowest, whatever else of the data set was known when it was scanned.
_SLACK = 1.25


def sampled_images(top_k: int) -> int:
    """Return how many images samples are drawn from."""
    return max(_SAMPLED_IMAGES, _SAMPLED_A_RANK * top_k)


def sample_rate(rows: int, top_k: int) -> float:
    """Return the priority below which a scan keeps images to draw from, given the data set's rows."""
    return min(1.0, _SLACK * sampled_images(top_k) / max(rows, 1))


def priority(seed: int, data: bytes) -> float:
    """Return when an image is drawn, 0..1, the lowest first: SHA-256 of the seed and its bytes."""
    digest = hashlib.sha256(f"{seed}\n".encode())
    digest.update(data)
    return (int.from_bytes(digest.digest()[:8], "little") >> 11) * 2.0**-53


@dataclass(frozen=True)
class SampledImages:
    """The activations of the images with the lowest priorities, in (shard, row) order."""

    shard: np.ndarray
    """int32 [images]: position in the sorted shard list."""
    row: np.ndarray
    """int64 [images]"""
    priority: np.ndarray
    """float64 [images]"""
    activations: list[np.ndarray]
    """For each (layer, statistic) pair of the run: float32 [images, channels]."""

    @classmethod
    def empty(cls, channels: Sequence[int]) -> Self:
        """Return no images, for pairs with so many channels each."""
        activations = [np.empty((0, count), np.float32) for count in channels]
        return cls(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0), activations)

    @classmethod
    def join(cls, several: Sequence[Self]) -> Self:
        """Return the images of several sets that share none."""
        order = np.lexsort(
            (np.concatenate([one.row for one in several]), np.concatenate([one.shard for one in several]))
        )

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays)[order]

        return cls(
            shard=joined([one.shard for one in several]),
            row=joined([one.row for one in several]),
            priority=joined([one.priority for one in several]),
            activations=[joined(list(arrays)) for arrays in zip(*(one.activations for one in several), strict=True)],
        )

    def lowest(self, count: int) -> Self:
        """Return the `count` images with the lowest priorities, the first to be drawn first."""
        order = np.lexsort((self.row, self.shard, self.priority))[:count]
        activations = [values[order] for values in self.activations]
        return type(self)(self.shard[order], self.row[order], self.priority[order], activations)


class Drawn(NamedTuple):
    """One sample of one channel: indices into the images it was drawn from."""

    sample: str
    channel: int
    """By place among the channels."""
    images: np.ndarray
    """In drawing order."""
    at_edges: np.ndarray
    """The images at either side of a band's edges: their activations decide who belongs to it."""


def draw(activations: np.ndarray, samples: Sequence[str], count: int) -> Iterator[Drawn]:
    """Draw samples of every channel.

    `random` is the first images of all; a percentile's band is the images whose rank (from the weakest,
    equals by priority) lies within half a percent of it. What is not finite is never drawn.

    Args:
        activations: float32 [images, channels], the first to be drawn first.
        count: how many images to draw, fewer if there are not so many.
    """
    finite = np.isfinite(activations)
    ascending = np.argsort(np.where(finite, activations, np.inf), axis=0, kind="stable")
    for channel, known in enumerate(finite.sum(axis=0).tolist()):
        for sample in samples:
            if sample == RANDOM:
                drawn = np.flatnonzero(finite[:, channel])[:count]
                yield Drawn(sample, channel, drawn, drawn[:0])
                continue
            first, end = band(percentile_of(sample), known)
            edges = [i for i in (first - 1, first, end - 1, end) if 0 <= i < known]
            drawn = np.sort(ascending[first:end, channel])[:count]
            yield Drawn(sample, channel, drawn, ascending[edges, channel])


def band(percentile: int, images: int) -> tuple[int, int]:
    """Return the first rank of a percentile's band, from 0 at the weakest, and the rank where it ends.

    Image i of n stands at the percentile 100 (i + 1/2) / n. Where none lies in the band, it is the nearest.

    >>> band(99, 2000), band(50, 8), band(50, 0)
    ((1970, 1990), (4, 5), (0, 0))
    """
    # In whole numbers: a percentile's half is a two-hundredth of the images.
    first, end = (-((100 - edge * images) // 200) for edge in (2 * percentile - 1, 2 * percentile + 1))
    first = min(max(first, 0), max(images - 1, 0))
    return first, min(max(end, first + 1), images)
