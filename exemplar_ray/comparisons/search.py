"""Which points lie near which: exact, block by block, in memory that does not grow with the pairs.

A matrix product says of every pair of a block how far apart it is at the least: |x - y|² = |x|² + |y|² - 2 x·y, with
the rounding taken off. Only pairs that could matter are then measured, as the sum of the squares of the differences, in
float64. What is found is what measuring every pair so would find, ties included; it does not depend on the blocks.

Rounding: of the product, whatever the order of its sums, at most g (2 |x| |y| + |x|² + |y|²) <= 2 g (|x|² + |y|²) with
g = n u / (1 - n u) for n terms and unit roundoff u (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1); of
the norms g (|x|² + |y|²); of centring, rounding to float32 and measuring less than 4 g together. `Points.off`,
8 (n + 4) u, is more than all of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 2048
_PAIRS_AT_ONCE = 1024
# Where more than one in so many pairs of a block lie in balls, those that do for sure are counted as a block.
_MANY = 16
# Points are scaled to about 1: what underflows in a product of two of them is far below this.
_UNDERFLOW = 1e-30


@dataclass(frozen=True, eq=False)
class Points:
    """Points, ready to be searched.

    Attributes:
        raw: float [points, channels], as given.
        ready: float [points, channels + 2]: centred and scaled, then 1, then what their norm's square is at the least.
        norms: float64 [points]: the squares of the norms.
        scale: a power of two, that differences are multiplied by.
        off: how much a squared distance may be off, as a share of the sum of the two squared norms.
    """

    raw: np.ndarray
    ready: np.ndarray
    norms: np.ndarray
    scale: float
    off: float

    def __len__(self) -> int:
        return len(self.raw)

    def least(self, rows: slice, others: Points, columns: slice) -> np.ndarray:
        """Return what the squared distances of a block are at the least: float [rows, columns]."""
        ready = self.ready[rows]
        left = np.empty_like(ready)
        np.multiply(ready[:, :-2], -2, out=left[:, :-2])
        left[:, -2], left[:, -1] = ready[:, -1], 1
        return left @ others.ready[columns].T

    def slack(self, norms: np.ndarray, other_norms: np.ndarray) -> np.ndarray:
        """Return how much more than the least a squared distance may be."""
        return 2 * (self.off * (norms + other_norms) + 2 * _UNDERFLOW)

    def measured(self, rows: np.ndarray, others: Points, columns: np.ndarray) -> np.ndarray:
        """Return the squared distances of pairs, scaled: float64 [pairs], the same whichever point comes first."""
        found = np.empty(len(rows))
        for first in range(0, len(rows), _PAIRS_AT_ONCE):
            few = slice(first, first + _PAIRS_AT_ONCE)
            apart = self.raw[rows[few]].astype(np.float64)
            apart -= others.raw[columns[few]]
            apart *= self.scale
            apart *= apart
            found[few] = apart.sum(axis=1)
        return found


def prepared(sets: Sequence[np.ndarray], k: int) -> list[Points]:
    """Prepare sets of points, about one origin and in one scale; in float32 where that leaves few pairs in doubt.

    Args:
        sets: float [points, channels] each, finite.
        k: how many neighbours will be wanted.
    """
    total = sum(points.sum(axis=0, dtype=np.float64) for points in sets)
    centre = np.asarray(total / sum(map(len, sets)))
    largest = max(
        float(np.abs(few - centre).max())
        for points in sets
        for few in (points[first : first + _BLOCK] for first in range(0, len(points), _BLOCK))
    )
    scale = float(2.0 ** -np.ceil(np.log2(largest))) if largest > 0 else 1.0
    samples = [_prepared(points[:: -(-len(points) // _BLOCK)], centre, scale, np.float64) for points in sets]
    kind = np.float32 if all(_float32_will_do(sample, k) for sample in samples) else np.float64
    return [_prepared(points, centre, scale, kind) for points in sets]


def _prepared(points: np.ndarray, centre: np.ndarray, scale: float, kind: type) -> Points:
    ready = np.empty((len(points), points.shape[1] + 2), kind)
    norms = np.empty(len(points))
    off = _off(points.shape[1], kind)
    for first in range(0, len(points), _BLOCK):
        few = slice(first, first + _BLOCK)
        centred = (points[few] - centre) * scale
        norms[few] = (centred**2).sum(axis=1)
        ready[few, :-2] = centred
    ready[:, -2], ready[:, -1] = 1, norms * (1 - off) - _UNDERFLOW
    return Points(points, ready, norms, scale, off)


def _off(channels: int, kind: type) -> float:
    return 8 * (channels + 6) * float(np.finfo(kind).eps) / 2


def _float32_will_do(sample: Points, k: int) -> bool:
    """Whether the rounding of float32 would add less than one point to the k nearest of one, on average."""
    if len(sample) < k + 2:
        return False
    every = slice(0, len(sample))
    least = sample.least(every, sample, every)
    np.fill_diagonal(least, np.inf)
    nearest = np.partition(least, k - 1, axis=1)[:, k - 1]
    off = _off(sample.raw.shape[1], np.float32)
    in_doubt = least <= (nearest + 2 * off * (sample.norms + sample.norms.max()))[:, None]
    return float(in_doubt.sum(axis=1).mean()) < k + 1


class Nearest:
    """The k nearest that were found of each point, by distance, equal ones by their index.

    Attributes:
        squared: float64 [points, k]: scaled squared distances; infinity where there are not so many.
        which: int64 [points, k]: whom; -1 where there are not so many.
    """

    def __init__(self, points: int, k: int) -> None:
        self.squared = np.full((points, k), np.inf)
        self.which = np.full((points, k), -1, np.int64)

    def add(self, rows: np.ndarray, columns: np.ndarray, squared: np.ndarray) -> None:
        """Take in pairs that were measured."""
        k = self.squared.shape[1]
        affected = np.unique(rows)
        rows = np.concatenate([np.repeat(affected, k), rows])
        columns = np.concatenate([self.which[affected].ravel(), columns])
        squared = np.concatenate([self.squared[affected].ravel(), squared])
        order = np.lexsort((columns, squared, rows))
        starts = np.searchsorted(rows[order], affected)
        best = order[starts[:, None] + np.arange(k)]
        self.squared[affected], self.which[affected] = squared[best], columns[best]


@dataclass(eq=False)
class Balls:
    """Balls about a set's points, and which of the other set's points are in them.

    Attributes:
        squared: float64 [points]: scaled squares of the radii.
        clipped: float64 [points]: of smaller ones.
        copies: int64 [points]: how many balls each stands for.
        inside: int64 [others]: how many balls a point lies inside of, not on.
        within: int64 [others]: how many it lies inside of or on.
        within_clipped: int64 [others]: how many of the smaller ones.
    """

    squared: np.ndarray
    clipped: np.ndarray
    copies: np.ndarray
    inside: np.ndarray
    within: np.ndarray
    within_clipped: np.ndarray

    @classmethod
    def about(cls, squared: np.ndarray, clipped: np.ndarray, copies: np.ndarray, others: int) -> Balls:
        """Return balls that nothing was found in."""
        inside, within, within_clipped = np.zeros((3, others), np.int64)
        return cls(squared, clipped, copies, inside, within, within_clipped)

    def doubtful(self, rows: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Return whether a squared distance between these bounds may be inside or outside."""
        of_whole, of_clipped = self.squared[rows], self.clipped[rows]
        return ((least <= of_whole) & (of_whole <= most)) | ((least <= of_clipped) & (of_clipped <= most))

    def count_block(self, rows: slice, columns: slice, inside: np.ndarray) -> None:
        """Take in a block, bool [rows, columns], of whether points lie inside of the smaller balls for sure."""
        balls = (self.copies[rows].astype(np.float32) @ inside.astype(np.float32)).astype(np.int64)
        for found in (self.inside, self.within, self.within_clipped):
            found[columns] += balls

    def count(self, rows: np.ndarray, columns: np.ndarray, squared: np.ndarray) -> None:
        """Take in squared distances that are exact where it matters."""
        of_whole = self.squared[rows]
        counted = (
            (self.inside, squared < of_whole),
            (self.within, squared <= of_whole),
            (self.within_clipped, squared <= self.clipped[rows]),
        )
        for found, which in counted:
            np.add.at(found, columns[which], self.copies[rows[which]])


def among_themselves(points: Points, k: int) -> Nearest:
    """Find the k nearest others of each point."""
    nearest = Nearest(len(points), k)
    for rows, columns in _blocks(points, points):
        if columns.start < rows.start:
            continue
        least = points.least(rows, points, columns)
        if rows == columns:
            np.fill_diagonal(least, np.inf)
        _look(points, points, (rows, columns), least, nearest)
        if rows != columns:
            _look(points, points, (columns, rows), least.T, nearest)
    return nearest


def between(ones: Points, others: Points, k: int, balls: tuple[Balls, Balls]) -> tuple[Nearest, Nearest]:
    """Find the k nearest of each point in the other set, and count who lies in whose ball.

    Args:
        balls: about `ones`, and about `others`; the counts of those of the other set are added up there.
    """
    nearest = Nearest(len(ones), k), Nearest(len(others), k)
    for rows, columns in _blocks(ones, others):
        least = ones.least(rows, others, columns)
        _look(ones, others, (rows, columns), least, nearest[0], balls[0])
        _look(others, ones, (columns, rows), least.T, nearest[1], balls[1])
    return nearest


def _blocks(ones: Points, others: Points) -> Iterator[tuple[slice, slice]]:
    for row in range(0, len(ones), _BLOCK):
        for column in range(0, len(others), _BLOCK):
            yield slice(row, min(row + _BLOCK, len(ones))), slice(column, min(column + _BLOCK, len(others)))


def _look(
    ones: Points,
    others: Points,
    block: tuple[slice, slice],
    least: np.ndarray,
    nearest: Nearest,
    balls: Balls | None = None,
) -> None:
    """Take in a block of least squared distances [rows, columns]."""
    rows, columns = block
    wanted = _wanted(ones, others, block, least, nearest)
    limits = wanted if balls is None else np.maximum(wanted, balls.squared[rows])
    chosen = least <= _rounded(limits, np.inf, least.dtype)
    sure = np.full((len(wanted), 1), -np.inf, least.dtype)
    if balls is not None and np.count_nonzero(chosen) > least.size // _MANY:
        slack = ones.slack(ones.norms[rows], others.norms[columns].max())
        sure = _rounded(balls.clipped[rows] - slack, -np.inf, least.dtype)
        inside = least <= sure
        balls.count_block(rows, columns, inside)
        chosen &= ~inside | (least <= _rounded(wanted, np.inf, least.dtype))
    i, j = _places(chosen)
    at_least = least[i, j]
    rest = at_least > sure[i, 0]
    squared = at_least.astype(np.float64)
    near = squared <= wanted[i]
    i, j = i + rows.start, j + columns.start
    measure = near
    if balls is not None:
        measure = near | balls.doubtful(i, squared, squared + ones.slack(ones.norms[i], others.norms[j]))
    squared[measure] = ones.measured(i[measure], others, j[measure])
    near &= squared <= nearest.squared[i, -1]
    if near.any():
        nearest.add(i[near], j[near], squared[near])
    if balls is not None:
        balls.count(i[rest], j[rest], squared[rest])


def _wanted(
    ones: Points, others: Points, block: tuple[slice, slice], least: np.ndarray, nearest: Nearest
) -> np.ndarray:
    """Return up to which squared distance a pair may be among the nearest: float64 [rows]."""
    rows, columns = block
    wanted = nearest.squared[rows, -1].copy()
    k = nearest.squared.shape[1]
    unknown = np.isinf(wanted)
    if unknown.any() and least.shape[1] >= k:
        kth = np.partition(least[unknown], k - 1, axis=1)[:, k - 1].astype(np.float64)
        wanted[unknown] = kth + ones.slack(ones.norms[rows][unknown], others.norms[columns].max())
    return wanted


def _rounded(limits: np.ndarray, towards: float, kind: np.dtype) -> np.ndarray:
    """Return limits as a column of maybe fewer digits, a little on the safe side."""
    return np.nextafter(limits.astype(kind), np.array(towards, kind))[:, None]


def _places(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of what is true, of a block in either order."""
    if chosen.flags.c_contiguous:
        row, column = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    else:
        column, row = np.divmod(np.flatnonzero(chosen.T), chosen.shape[0])
    return row, column
