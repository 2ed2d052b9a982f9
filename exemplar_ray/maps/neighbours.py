"""Exact nearest neighbours, in blocks; each point's by itself, whoever comes along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# The table of distances in memory has so many rows and columns.
QUERIES_AT_ONCE = 256
_REFERENCES_AT_ONCE = 16384

# So many more than asked for are looked at closely.
_SPARE = 8


class Distances:
    """Squared Euclidean distances to some points: many at a time within rounding, or a few exactly.

    Products of matrices are fast; their last bits depend on their shape, and on threads.
    """

    def __init__(self, points: np.ndarray) -> None:
        """Of float [points, channels], finite."""
        self._points = points
        self._centre = points.mean(axis=0, dtype=np.float64)
        blocks = range(0, len(points), _REFERENCES_AT_ONCE)
        self._lengths = np.concatenate(
            [self._squared_lengths(points[first : first + _REFERENCES_AT_ONCE]) for first in blocks]
        )

    def _squared_lengths(self, points: np.ndarray) -> np.ndarray:
        centred = points - self._centre
        return np.einsum("ij,ij->i", centred, centred)

    def roughly(self, queries: np.ndarray, own: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield tables within rounding of queries with one block of points after another.

        Args:
            queries: float [queries, channels].
            own: int64 [queries]: which point a query is itself, infinitely far away in the table; None if it is none.

        Yields:
            The block's first point, and float64 [queries, points of the block].
        """
        centred = queries - self._centre
        lengths = np.einsum("ij,ij->i", centred, centred)[:, None]
        for first in range(0, len(self._points), _REFERENCES_AT_ONCE):
            block = slice(first, first + _REFERENCES_AT_ONCE)
            table = centred @ (-2 * (self._points[block] - self._centre)).T
            table += self._lengths[block]
            table += lengths
            if own is not None:
                leave_out(table, first, own[:, None])
            yield first, table

    def rounding(self, queries: np.ndarray) -> np.ndarray:
        """Return by how much `roughly` and `exactly` can differ at most, with room: float64 [queries].

        Higham, "Accuracy and stability of numerical algorithms" (2002), sections 3.1 and 3.5.
        """
        unit = 8 * (queries.shape[1] + 8) * 2.0**-53
        return unit * (self._squared_lengths(queries) + self._lengths.max())

    def exactly(self, queries: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Return distances to a few points: one sum over the channels, in their order, in float64.

        Args:
            queries: float [queries, channels].
            which: int64 [queries, few].

        Returns:
            float64 [queries, few].
        """
        total = np.zeros(which.shape)
        for channel in range(queries.shape[1]):
            apart = queries[:, channel, None].astype(np.float64) - self._points[:, channel][which]
            total += apart * apart
        return total


def leave_out(table: np.ndarray, first: int, which: np.ndarray) -> None:
    """Set what a block's table has of some points to infinity.

    Args:
        table: float64 [queries, points of the block].
        first: the block's first point.
        which: int64 [queries, some].
    """
    row, column = np.nonzero((which >= first) & (which < first + table.shape[1]))
    table[row, which[row, column] - first] = np.inf


def nearest(
    queries: np.ndarray, references: np.ndarray, count: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest references of each query, by Euclidean distance, exactly.

    Rough distances find candidates: all that could be among the nearest in spite of rounding. Exact ones choose.

    Args:
        queries: float [queries, channels], finite.
        references: float [references, channels], finite.
        count: how many; no more than there are references, less one where `own` is given.
        own: int64 [queries]: which reference a query is itself, and is not to find; None if it is none.

    Returns:
        int64 [queries, count]: which references, nearest first, the first ones of those that are equally near; and
        float64 [queries, count]: how far away.
    """
    return nearest_by(Distances(references), queries, count, own)


def nearest_by(
    distances: Distances, queries: np.ndarray, count: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Do what `nearest` does, where distances to the references are at hand."""
    which, squared = np.empty((len(queries), count), np.int64), np.empty((len(queries), count))
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        which[rows], squared[rows] = _of_block(queries[rows], distances, count, None if own is None else own[rows])
    return which, np.sqrt(squared)


def _of_block(
    queries: np.ndarray, distances: Distances, count: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    candidates, least_left = _candidates(queries, distances, count + _SPARE, own)
    which, squared = _closest(queries, distances, candidates, count, own)
    rounding = distances.rounding(queries)
    for row in np.flatnonzero(~(least_left - rounding > squared[:, -1])):
        # Many are about as near as the last: all of them are looked at.
        one, itself = queries[row : row + 1], None if own is None else own[row : row + 1]
        most = squared[row, -1] + rounding[row]
        possible = [first + np.flatnonzero(table[0] <= most) for first, table in distances.roughly(one, itself)]
        which[row], squared[row] = _closest(one, distances, np.concatenate(possible)[None], count, itself)
    return which, squared


def _closest(
    queries: np.ndarray, distances: Distances, candidates: np.ndarray, count: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest candidates and their squared distances, both [queries, count]; candidates are ascending."""
    squared = distances.exactly(queries, candidates)
    if own is not None:
        squared[candidates == own[:, None]] = np.inf
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(squared, order, axis=1)


def _candidates(
    queries: np.ndarray, distances: Distances, count: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which points are roughly nearest, int64 [queries, count] or all there are, ascending; and the least rough
    distance of all others, float64 [queries], infinite if there are none."""
    rough, which = [], []
    for first, table in distances.roughly(queries, own):
        found = _smallest(table, count)
        which.append(found + first)
        rough.append(np.take_along_axis(table, found, axis=1))
    tables, names = np.concatenate(rough, axis=1), np.concatenate(which, axis=1)
    found = _smallest(tables, count)
    left = np.take_along_axis(tables, found[:, count:], axis=1).min(axis=1, initial=np.inf)
    return np.sort(np.take_along_axis(names, found[:, :count], axis=1), axis=1), left


def _smallest(table: np.ndarray, count: int) -> np.ndarray:
    """Return where the smallest are, and behind them the next one: int64 [rows, count + 1]; or all, sorted."""
    if table.shape[1] <= count + 1:
        return np.argsort(table, axis=1, kind="stable")
    return np.argpartition(table, count, axis=1)[:, : count + 1]
