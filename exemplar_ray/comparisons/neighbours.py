"""How well two sets of points cover each other, by the distances of nearest neighbours: exact, however many there are.

About each real point lies a ball that reaches to the k-th nearest of the other real ones; likewise of generated ones.

- precision: the share of generated points that a real ball holds, those on its surface included; recall: the same with
  the sets exchanged. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models"
  (2019), eq. 1.
- density: how many real balls hold a generated point, over k, on average. Coverage: the share of real balls that hold a
  generated point. Those on the surface do not count, as in the authors' `prdc`, so that a set has density 1 to itself.
  Naeem et al., "Reliable fidelity and diversity metrics for generative models" (2020).
- clipped density: density with radii of at most their median and with counts of at most k, over what the real points
  reach among themselves, and 1 at most. Clipped coverage: how many of the k generated points nearest to a real one are
  inside its ball, over k, on average; read as the share of good points among the generated ones that would on average
  give as much. Salvy, Talbot and Thirion, "Enhanced generative model evaluation with clipped density and coverage"
  (2026), as the authors' code defines them.

Numbers of another k, or of another number of points, do not compare.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from exemplar_ray.comparisons.points import check_pair, check_points
from exemplar_ray.comparisons.search import Balls, Nearest, among_themselves, between, prepared
from exemplar_ray.errors import UsageError

K = 5
"""Of Naeem et al. and of the clipped forms; Kynkäänniemi et al. use 3."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest of each point, the nearest first, equally near ones by their index.

    Attributes:
        index: int64 [points, k].
        distance: float64 [points, k].
    """

    index: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True, eq=False)
class Nearness:
    """How two sets lie to each other.

    Attributes:
        k: to which neighbour balls reach.
        among_real: of each real point, among the other real ones; `distance[:, -1]` are the radii.
        among_generated: of each generated point, among the other generated ones.
        real_to_generated: of each real point, among the generated ones.
        generated_to_real: of each generated point, among the real ones.
        real_balls: int64 [generated]: how many real balls hold a generated point, its surface left out.
        in_real: bool [generated]: whether a real ball holds it, surface included: precision, point by point.
        in_generated: bool [real]: whether a generated ball holds it, surface included: recall, point by point.
        clipped_balls: int64 [generated]: how many real balls of clipped radii hold it, surface included.
    """

    k: int
    among_real: Neighbours
    among_generated: Neighbours
    real_to_generated: Neighbours
    generated_to_real: Neighbours
    real_balls: np.ndarray
    in_real: np.ndarray
    in_generated: np.ndarray
    clipped_balls: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """Whether a real point's ball holds a generated point, its surface left out: bool [real]."""
        return self.real_to_generated.distance[:, 0] < self.among_real.distance[:, -1]

    @property
    def precision(self) -> float:
        """The share of generated points that lie among real ones."""
        return float(self.in_real.mean())

    @property
    def recall(self) -> float:
        """The share of real points that lie among generated ones."""
        return float(self.in_generated.mean())

    @property
    def density(self) -> float:
        """How many real balls hold a generated point, over k, on average."""
        return float(self.real_balls.mean() / self.k)

    @property
    def coverage(self) -> float:
        """The share of real points that a generated one comes near."""
        return float(self.covered.mean())

    @property
    def clipped_density(self) -> float:
        """Density that neither outliers nor crowds can raise: 1 at most."""
        near, real = self.among_real, len(self.among_real.index)
        # A real point is in the balls of those whose neighbour it is, if these still reach it.
        reached = near.distance <= _clipped(near.distance[:, -1])[:, None]
        balls = np.bincount(near.index[reached], minlength=real)
        ideal = np.minimum(balls / self.k, 1).mean()
        return float(min(1, np.minimum(self.clipped_balls / self.k, 1).mean() / ideal))

    @property
    def clipped_coverage(self) -> float:
        """The share of good points among the generated ones that would on average cover as much."""
        inside = self.real_to_generated.distance < self.among_real.distance[:, -1:]
        real, generated = inside.shape[0], len(self.in_real)
        return share_of_good(float(inside.mean()), self.k, real, generated)

    @property
    def without_room(self) -> int:
        """How many real points have k exact copies or more: nothing can be inside a ball of radius 0."""
        return int((self.among_real.distance[:, -1] == 0).sum())


def nearness(real: np.ndarray, generated: np.ndarray, k: int = K) -> Nearness:
    """Measure how two sets of points lie to each other.

    50,000 points by 508 channels against as many take less than two minutes on two cores, and less than 2 GB.

    Args:
        real: float [points, channels].
        generated: float [points, channels].
        k: to which neighbour balls reach.

    Raises:
        UsageError: another number of channels, NaN or infinity, or fewer than k + 1 points in a set.
    """
    check_pair(real, generated, ("the real points", "the generated points"))
    for points, name in ((real, "real"), (generated, "generated")):
        if not 1 <= k < len(points):
            raise UsageError(
                f"{len(points)} {name} points have no {k} nearest others each: k must be from 1 to {len(points) - 1}"
            )
    sets = [
        _Distinct.of(real, np.result_type(real, generated)),
        _Distinct.of(generated, np.result_type(real, generated)),
    ]
    ones, others = prepared([points.values for points in sets], k)
    scale = ones.scale
    own = [
        one.among_themselves(among_themselves(points, k), k) for one, points in zip(sets, (ones, others), strict=True)
    ]
    radii = [nearest.squared[one.first, -1] for one, nearest in zip(sets, own, strict=True)]
    # The median is of all points, copies included.
    clipped = _clipped_squares(own[0].squared[:, -1])[sets[0].first]
    balls = (
        Balls.about(radii[0], clipped, sets[0].copies, len(others)),
        Balls.about(radii[1], radii[1], sets[1].copies, len(ones)),
    )
    across = between(ones, others, k, balls)
    to_generated = sets[1].members_of(across[0], k)
    to_real = sets[0].members_of(across[1], k)
    return Nearness(
        k=k,
        among_real=_neighbours(own[0], scale),
        among_generated=_neighbours(own[1], scale),
        real_to_generated=_neighbours(to_generated, scale, sets[0].inverse),
        generated_to_real=_neighbours(to_real, scale, sets[1].inverse),
        real_balls=balls[0].inside[sets[1].inverse],
        in_real=balls[0].within[sets[1].inverse] > 0,
        in_generated=balls[1].within[sets[0].inverse] > 0,
        clipped_balls=balls[0].within_clipped[sets[1].inverse],
    )


def nearest_others(points: np.ndarray, k: int) -> Neighbours:
    """Find the k nearest others of each point of a set. A point is not its own neighbour; its copies are.

    Raises:
        UsageError: NaN or infinity, or fewer than k + 1 points.
    """
    check_points(points, "the points")
    if not 1 <= k < len(points):
        raise UsageError(f"{len(points)} points have no {k} nearest others each: k must be from 1 to {len(points) - 1}")
    distinct = _Distinct.of(points, points.dtype)
    (ready,) = prepared([distinct.values], k)
    return _neighbours(distinct.among_themselves(among_themselves(ready, k), k), ready.scale)


def share_of_good(covered: float, k: int, real: int, generated: int) -> float:
    """Return what share of the generated points would on average cover so much, if the others covered nothing.

    Where m of them are distributed like the real ones, J of them lie in a real point's ball, a beta-binomial variable
    of m draws with the parameters k and real - k. They cover E[min(J, k)] / k, taken as 0 for m < k, as in the authors'
    code.

    Args:
        covered: the mean share of the k nearest generated points that lie inside a real point's ball.
        k: to which neighbour balls reach.
        real: how many real points.
        generated: how many generated ones.
    """
    factorials = np.concatenate([[0], np.cumsum(np.log(np.arange(1, real + generated + 1)))])

    def expected(points: int) -> float:
        if points < k:
            return 0.0
        inside = np.arange(1, points + 1)
        choose = factorials[points] - factorials[inside] - factorials[points - inside]
        beta = factorials[k + inside - 1] + factorials[real + points - k - inside - 1] - factorials[real + points - 1]
        beta -= factorials[k - 1] + factorials[real - k - 1] - factorials[real - 1]
        return float((np.minimum(inside, k) * np.exp(choose + beta)).sum() / k)

    return bisect_left(range(generated + 1), covered, key=expected) / (generated + 1)


def _clipped_squares(squares: np.ndarray) -> np.ndarray:
    """Return squared radii, none larger than the median of the radii."""
    low, high = np.sort(squares)[[(len(squares) - 1) // 2, len(squares) // 2]]
    # The square of a root is another number than what it is the root of: a tie would be decided by rounding.
    return np.minimum(squares, low if low == high else ((np.sqrt(low) + np.sqrt(high)) / 2) ** 2)


def _clipped(radii: np.ndarray) -> np.ndarray:
    return np.minimum(radii, np.median(radii))


def _neighbours(nearest: Nearest, scale: float, rows: np.ndarray | None = None) -> Neighbours:
    which, squared = nearest.which, nearest.squared
    if rows is not None:
        which, squared = which[rows], squared[rows]
    return Neighbours(which, np.sqrt(squared) / scale)


@dataclass(frozen=True, eq=False)
class _Distinct:
    """A set of points, each of them once.

    Attributes:
        values: float [distinct, channels], in the order of their first copies.
        first: int64 [distinct]: the index of the first copy.
        copies: int64 [distinct]: how many there are.
        inverse: int64 [points]: which of the distinct ones each point is.
        members: int64 [points]: the points, copies together.
    """

    values: np.ndarray
    first: np.ndarray
    copies: np.ndarray
    inverse: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, kind: np.dtype) -> _Distinct:
        # Adding 0 makes 0 of -0, which is the same point in other bytes.
        values = np.ascontiguousarray(points, kind) + kind.type(0)
        rows = values.view(np.dtype((np.void, values.dtype.itemsize * values.shape[1]))).ravel()
        _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        order = np.argsort(first)
        inverse = np.argsort(order)[inverse]
        first = first[order]
        values = values if len(first) == len(values) else values[first]
        return cls(values, first, np.bincount(inverse), inverse, np.argsort(inverse, kind="stable"))

    def members_of(self, nearest: Nearest, k: int) -> Nearest:
        """Return the k nearest points, given the k nearest distinct ones of this set."""
        if len(self.values) == len(self.inverse):
            return nearest
        starts = np.concatenate([[0], np.cumsum(self.copies)])
        row, place = np.nonzero(nearest.which >= 0)
        which = nearest.which[row, place]
        # More copies than k of one point are never needed.
        some = np.minimum(self.copies[which], k)
        copy = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        members = self.members[np.repeat(starts[which], some) + copy]
        found = Nearest(len(nearest.which), k)
        found.add(np.repeat(row, some), members, np.repeat(nearest.squared[row, place], some))
        return found

    def among_themselves(self, nearest: Nearest, k: int) -> Nearest:
        """Return the k nearest other points of each point, given those of the distinct ones."""
        if len(self.values) == len(self.inverse):
            return nearest
        with_itself = Nearest(len(self.values), k + 1)
        with_itself.which[:, 1:], with_itself.squared[:, 1:] = nearest.which, nearest.squared
        with_itself.which[:, 0], with_itself.squared[:, 0] = np.arange(len(self.values)), 0
        listed = self.members_of(with_itself, k + 1)
        which, squared = listed.which[self.inverse], listed.squared[self.inverse]
        # A point itself is left out; where more than k copies come before it, the last of the list.
        left_out = which == np.arange(len(which))[:, None]
        left_out[~left_out.any(axis=1), -1] = True
        found = Nearest(len(which), k)
        found.which, found.squared = which[~left_out].reshape(-1, k), squared[~left_out].reshape(-1, k)
        return found
