"""Arrays that may be larger than a worker's memory: large ones lie in a file, which the system reads and writes."""

from __future__ import annotations

import mmap
import tempfile

import numpy as np

MOST_IN_MEMORY = 64 << 20
"""Bytes that an array may have to be kept in memory."""


def roomy(shape: tuple[int, int], kind: type, fill: float) -> np.ndarray:
    """Return a new array, filled; in a file without a name if it is large."""
    if shape[0] * shape[1] * np.dtype(kind).itemsize <= MOST_IN_MEMORY:
        return np.full(shape, fill, kind)
    with tempfile.TemporaryFile(prefix="exemplar_ray-") as file:
        # A file begins as zeros, none of which take room.
        array = np.memmap(file, kind, "w+", shape=shape)
    if fill != 0:
        step = max(1, MOST_IN_MEMORY // (8 * shape[1] * array.itemsize))
        for start in range(0, shape[0], step):
            array[start : start + step] = fill
            written(array)
    return array


def written(*arrays: np.ndarray) -> None:
    """Let go of the memory of arrays that lie in a file; what was written into them stays there."""
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
