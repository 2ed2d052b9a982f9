"""Some of many rows, drawn by their places and a seed: the same ones in every version of every library."""

from __future__ import annotations

import numpy as np


def drawn(rows: int, count: int, seed: int) -> np.ndarray:
    """Draw rows without replacement: those whose places have the smallest hashes.

    The hash is SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). Where rows
    are added at the end, those that were drawn before and are no longer among the smallest go, and no others.

    Args:
        rows: how many there are.
        count: how many to draw; all of them if there are no more.

    Returns:
        int64, ascending.

    >>> drawn(3, 5, seed=0).tolist()
    [0, 1, 2]
    >>> drawn(1000, 4, seed=0).tolist() == drawn(1000, 4, seed=1).tolist()
    False
    """
    if count >= rows:
        return np.arange(rows)
    start = _mixed(np.array([seed], np.int64).astype(np.uint64))
    hashes = _mixed(start + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.sort(np.argsort(hashes, kind="stable")[:count])


def _mixed(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
