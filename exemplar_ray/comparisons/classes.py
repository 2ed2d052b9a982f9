"""Class by class: where a class of one set lies in the other set, and which classes nothing comes near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exemplar_ray.comparisons import frechet
from exemplar_ray.comparisons.points import check_channels
from exemplar_ray.errors import UsageError
from exemplar_ray.moments import Moments


@dataclass(frozen=True)
class ClassDistance:
    """How far a class of one set is from the same class of the other.

    Attributes:
        label: which class.
        ones: how many points of it the first set has.
        others: how many the second.
        centroid: the Euclidean distance of their means.
        frechet: their Fréchet distance; NaN of fewer than two points.
        too_few: in words, why it is none of distributions; None where there are enough points.
    """

    label: int
    ones: int
    others: int
    centroid: float
    frechet: float
    too_few: str | None


def class_distances(ones: Mapping[int, Moments], others: Mapping[int, Moments]) -> list[ClassDistance]:
    """Compare the classes that both sets have, by label.

    Args:
        ones: of each class of a set, by its label.
        others: of each class of the other.

    Raises:
        UsageError: the sets have no class in common, or another number of channels.
    """
    labels = sorted(set(ones) & set(others))
    if not labels:
        raise UsageError(
            f"no class is in both sets, of {len(ones)} and {len(others)}: their labels mean different things"
        )
    return [_compared(label, ones[label], others[label]) for label in labels]


def _compared(label: int, one: Moments, other: Moments) -> ClassDistance:
    check_channels(len(one.mean), len(other.mean))
    return ClassDistance(
        label=label,
        ones=one.count,
        others=other.count,
        centroid=float(np.linalg.norm(one.mean - other.mean)),
        frechet=frechet.distance(one, other) if min(one.count, other.count) > 1 else float("nan"),
        too_few=frechet.too_few(one.count, other.count, len(one.mean)),
    )


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Whether points lie where their class lies in the other set.

    Attributes:
        share: float64 [points]: how many of the k nearest in the other set are of the point's class, over k.
        voted: int64 [points]: the class that most of the k nearest have; of equally many, the one that occurs nearest.
        labels: int64 [classes], ascending: of the points.
        points: int64 [classes]: how many of each.
        share_of_class: float64 [classes]: the mean of `share`.
        right_of_class: float64 [classes]: the share of points whose vote is their class.
    """

    share: np.ndarray
    voted: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    share_of_class: np.ndarray
    right_of_class: np.ndarray

    @property
    def whole(self) -> float:
        """The share of all points whose vote is their class."""
        return float(self.right_of_class @ self.points / self.points.sum())


def fidelity(labels: np.ndarray, neighbours: np.ndarray, labels_of_others: np.ndarray) -> Fidelity:
    """Ask of each point whether it lies among its class in the other set.

    Args:
        labels: int [points]: classes of the points.
        neighbours: int [points, k]: the nearest in the other set, the nearest first.
        labels_of_others: int [others]: classes of the other set.

    Raises:
        UsageError: there is not one label a point, or some have none (a negative label).
    """
    _check_labels(labels, len(neighbours))
    if len(labels_of_others) <= neighbours.max() or labels_of_others.min() < 0:
        raise UsageError("every point of the other set needs a label, 0 or more; leave out the images without one")
    classes = labels_of_others[neighbours]
    same = classes == labels[:, None]
    # How many of the k nearest have the class of each of them: the first of the largest counts has won.
    votes = (classes[:, :, None] == classes[:, None, :]).sum(axis=2)
    voted = np.take_along_axis(classes, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    found, which, points = np.unique(labels, return_inverse=True, return_counts=True)
    share = same.mean(axis=1)
    return Fidelity(
        share=share,
        voted=voted,
        labels=found,
        points=points,
        share_of_class=np.bincount(which, share) / points,
        right_of_class=np.bincount(which, voted == labels) / points,
    )


@dataclass(frozen=True, eq=False)
class ModeCoverage:
    """What of the real points, and of their classes, a generated point comes near.

    Attributes:
        labels: int64 [classes], ascending.
        points: int64 [classes]: real points of each.
        covered: int64 [classes]: how many of them a generated point comes near.
    """

    labels: np.ndarray
    points: np.ndarray
    covered: np.ndarray

    @property
    def of_points(self) -> float:
        """The share of real points that a generated one comes near: the coverage."""
        return float(self.covered.sum() / self.points.sum())

    @property
    def of_classes(self) -> float:
        """The share of classes that have such a point."""
        return float((self.covered > 0).mean())


def mode_coverage(covered: np.ndarray, labels: np.ndarray) -> ModeCoverage:
    """Count by class what is covered.

    Args:
        covered: bool [real points]: whether a generated one comes near, such as `Nearness.covered`.
        labels: int [real points].

    Raises:
        UsageError: there is not one label a point, or some have none (a negative label).
    """
    _check_labels(labels, len(covered))
    found, which, points = np.unique(labels, return_inverse=True, return_counts=True)
    return ModeCoverage(found, points, np.bincount(which, covered).astype(np.int64))


def _check_labels(labels: np.ndarray, points: int) -> None:
    if labels.shape != (points,):
        raise UsageError(f"{labels.size} labels for {points} points: each needs one")
    if points and labels.min() < 0:
        raise UsageError(f"{int((labels < 0).sum())} points have no label; leave them out")
