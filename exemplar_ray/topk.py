"""The total order of exemplars, and merging partial top-Ks under it. Numpy only.

Order within a channel: activation descending, then shard position ascending, then row
ascending. No two images compare equal, so the best K of any set of images is one list,
and merging is associative, commutative and idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """Activations of channels on images: parallel arrays of length n, in any order."""

    series: np.ndarray
    """int32: which (layer, statistic), as its place in a list the caller keeps."""
    channel: np.ndarray
    """int32: channel of the layer."""
    activation: np.ndarray
    """float32: finite."""
    shard: np.ndarray
    """int32: position in the sorted shard list."""
    row: np.ndarray
    """int64: row in the shard, from 0."""

    @classmethod
    def empty(cls) -> Scores:
        """Return no scores at all, the neutral element of `merge`."""
        types = (np.int32, np.int32, np.float32, np.int32, np.int64)
        return cls(*(np.empty(0, dtype=t) for t in types))

    def take(self, which: np.ndarray) -> Scores:
        """Return the scores at some indices, or where a mask is true."""
        return Scores(*(column[which] for column in self))


def concatenate(scores: Iterable[Scores]) -> Scores:
    """Put several sets of scores one after another."""
    several = [Scores.empty(), *scores]
    return Scores(*(np.concatenate(columns) for columns in zip(*several, strict=True)))


def rank(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Sort by (series, channel, total order) and leave out repetitions of an image.

    Returns:
        Where the sorted scores stand in `scores` (int64 indices), and their int32 ranks,
        counted from 1 within each (series, channel).

    Raises:
        ValueError: an activation is NaN or infinite; those are counted, never ranked.
    """
    if not np.isfinite(scores.activation).all():
        raise ValueError("only finite activations can be ranked")
    # -0 and +0 compare equal, so the two are one activation, whatever the sign bit.
    order = np.lexsort((scores.row, scores.shard, -scores.activation, scores.channel, scores.series))
    ordered = scores.take(order)
    first_of_image = _differs_from_previous(ordered.series, ordered.channel, ordered.shard, ordered.row)
    order, ordered = order[first_of_image], ordered.take(first_of_image)
    starts = np.flatnonzero(_differs_from_previous(ordered.series, ordered.channel))
    lengths = np.diff(np.append(starts, len(order)))
    ranks = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return order, ranks.astype(np.int32)


def merge(several: Iterable[Scores], keep: int) -> Scores:
    """Merge partial top-Ks: the `keep` best images of each (series, channel), sorted."""
    scores = concatenate(several)
    order, ranks = rank(scores)
    return scores.take(order[ranks <= keep])


def _differs_from_previous(*columns: np.ndarray) -> np.ndarray:
    """True where any of the columns differs from the entry before; true at the start."""
    differs = np.ones(len(columns[0]), dtype=bool)
    if len(differs) > 1:
        differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return differs
