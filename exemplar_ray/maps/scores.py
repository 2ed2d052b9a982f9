"""What says whether a map, or clusters, can be believed: numbers between sets of points, labels and clusters.

A score that cannot be had is None, with words why; it is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from exemplar_ray.maps.clusters import NOISE
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.maps.libraries import library
from exemplar_ray.maps.neighbours import QUERIES_AT_ONCE, Distances, leave_out, nearest
from exemplar_ray.maps.placing import PLACED_BY, FittedMap, place_among

NEIGHBOURS = 15
"""Of how many neighbours k-NN accuracy, trustworthiness and continuity are."""

MOST_VOTED = 50_000
"""Of more points than these, k-NN accuracy is of so many, drawn, among all."""

MOST_RANKED = 10_000
"""Of more points than these, trustworthiness and continuity are of so many, drawn, among all; the silhouette of so many
among themselves."""


@dataclass(frozen=True)
class Score:
    """A number, or why there is none.

    Attributes:
        value: the number; None where it cannot be had.
        words: what it is of; why there is none.
    """

    value: float | None
    words: str


def agreement(clusters: np.ndarray, labels: np.ndarray | None) -> dict[str, Score]:
    """Return how clusters agree with labels: the adjusted Rand index (Hubert and Arabie, 1985), and adjusted mutual
    information (Vinh, Epps and Bailey, 2010), by scikit-learn; 0 is chance, 1 is the same.

    Points without a label are left out. Points in no cluster count as one cluster more; the scores named
    `..._clustered` leave them out, and so are of other points each time.

    Args:
        clusters: int [points]; `NOISE` for none.
        labels: int [points], negative for none; None if there are none.
    """
    names = {"adjusted_rand": "adjusted_rand_score", "adjusted_mutual_information": "adjusted_mutual_info_score"}
    labelled = np.zeros(len(clusters), bool) if labels is None else np.asarray(labels) >= 0
    inside = labelled & (clusters != NOISE)
    noise = int(labelled.sum() - inside.sum())
    as_one = f"; {noise:,} in no cluster count as one" if noise else ""
    without = f"; {noise:,} in no cluster are left out"
    scores = {}
    for ending, chosen, said in (("", labelled, as_one), ("_clustered", inside, without)):
        for name, function in names.items():
            scores[name + ending] = _agree(function, clusters[chosen], None if labels is None else labels[chosen], said)
    return scores


def _agree(function: str, clusters: np.ndarray, labels: np.ndarray | None, said: str) -> Score:
    if labels is None or not len(labels):
        return Score(None, "no point has a label" if labels is None or not said else f"no point is left{said}")
    for what, groups in (("label", labels), ("cluster", clusters)):
        if len(np.unique(groups)) < 2:
            return Score(None, f"all {len(groups):,} points have the same {what}{said}")
        if len(np.unique(groups)) == len(groups):
            return Score(None, f"each of {len(groups):,} points has a {what} of its own{said}")
    value = getattr(library("sklearn.metrics"), function)(labels, clusters)
    return Score(float(value), f"of {len(labels):,} points{said}")


def silhouette(points: np.ndarray, groups: np.ndarray | None, seed: int = 0) -> Score:
    """Return the mean silhouette (Rousseeuw, 1987) of clusters, or classes, by Euclidean distance: -1 to 1; by
    scikit-learn.

    Args:
        points: float [points, channels].
        groups: int [points]; negative for none, which are left out; None if there are none.
        seed: which points, where there are more than `MOST_RANKED`.
    """
    if groups is None or not (groups >= 0).any():
        return Score(None, "no point is in a group")
    chosen = np.flatnonzero(groups >= 0)
    said = f"of {len(chosen):,} points"
    if len(chosen) > MOST_RANKED:
        said = f"of {MOST_RANKED:,} points drawn of {len(chosen):,} (seed {seed})"
        chosen = chosen[drawn(len(chosen), MOST_RANKED, seed)]
    if len(chosen) < len(groups) and (outside := int((groups < 0).sum())):
        said += f"; {outside:,} in no group are left out"
    count = len(np.unique(groups[chosen]))
    if not 2 <= count < len(chosen):
        return Score(None, f"{said}: {count:,} groups of {len(chosen):,} points have none")
    value = library("sklearn.metrics").silhouette_score(np.asarray(points[chosen], np.float64), groups[chosen])
    return Score(float(value), said)


def knn_accuracy(points: np.ndarray, labels: np.ndarray | None, neighbours: int = NEIGHBOURS, seed: int = 0) -> Score:
    """Return for how many points most of their nearest neighbours, without themselves, have their label: 0 to 1.

    Neighbours are exact; of labels with equally many votes the least wins. Points without a label neither vote nor
    count.

    Args:
        points: float [points, channels].
        labels: int [points], negative for none; None if there are none.
        neighbours: how many vote.
        seed: which points, where there are more than `MOST_VOTED`.
    """
    if labels is None or not (np.asarray(labels) >= 0).any():
        return Score(None, "no point has a label")
    labelled = np.flatnonzero(np.asarray(labels) >= 0)
    if len(labelled) <= neighbours:
        return Score(None, f"{len(labelled):,} labelled points are not more than {neighbours} neighbours")
    names, classes = np.unique(labels[labelled], return_inverse=True)
    if len(names) < 2:
        return Score(None, f"all {len(labelled):,} points have the same label")
    if len(names) == len(labelled):
        return Score(None, f"each of {len(labelled):,} points has a label of its own")
    of = points if len(labelled) == len(points) else points[labelled]
    asked = drawn(len(of), MOST_VOTED, seed)
    found, _ = nearest(of[asked], of, neighbours, own=asked)
    right = 0
    for first in range(0, len(asked), QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        votes = np.zeros((len(asked[rows]), len(names)), np.int64)
        for voter in found[rows].T:
            votes[np.arange(len(votes)), classes[voter]] += 1
        right += int((votes.argmax(axis=1) == classes[asked[rows]]).sum())
    largest = np.bincount(classes).max() / len(classes)
    words = f"{_of(len(asked), len(of), seed)}, {neighbours} neighbours; the largest class has {largest:.1%} of them"
    return Score(right / len(asked), words)


def trustworthiness(points: np.ndarray, places: np.ndarray, neighbours: int = NEIGHBOURS, seed: int = 0) -> Score:
    """Return whether a point's neighbours in the map are its neighbours: 1 where all are, by how far those that are not
    come after these (Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", 2001); as
    scikit-learn has it.

    Args:
        points: float [points, channels].
        places: float [points, 2].
        neighbours: how many; fewer than half of the points.
        seed: which points, where there are more than `MOST_RANKED`.
    """
    count = len(points)
    if 2 * neighbours >= count:
        return Score(None, f"{neighbours} neighbours are not fewer than half of {count:,} points")
    asked = drawn(count, MOST_RANKED, seed)
    shown, _ = nearest(places[asked], places, neighbours, own=asked)
    distances, too_far = Distances(points), 0
    for first in range(0, len(asked), QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        ranks = _ranks(points[asked[rows]], distances, asked[rows], shown[rows])
        too_far += int(np.maximum(ranks - neighbours, 0).sum())
    worst = len(asked) * neighbours * (2 * count - 3 * neighbours - 1) / 2
    return Score(1 - too_far / worst, f"{_of(len(asked), count, seed)}, {neighbours} neighbours")


def continuity(points: np.ndarray, places: np.ndarray, neighbours: int = NEIGHBOURS, seed: int = 0) -> Score:
    """Return whether a point's neighbours are its neighbours in the map: trustworthiness the other way round."""
    return trustworthiness(places, points, neighbours, seed)


def _ranks(queries: np.ndarray, distances: Distances, own: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the how manieth neighbour of each query, from 1, the shown ones are: int64 like `shown`."""
    limits = distances.exactly(queries, shown)
    ranks = np.ones(shown.shape, np.int64)
    for first, table in distances.roughly(queries, own):
        # Rounding tells nothing of the shown ones themselves.
        leave_out(table, first, shown)
        for column, limit in enumerate(limits.T):
            ranks[:, column] += [np.count_nonzero(row) for row in table < limit[:, None]]
    for column, limit in enumerate(limits.T):
        ranks[:, column] += (limits < limit[:, None]).sum(axis=1)
    return ranks


def placing_error(fitted: FittedMap) -> Score:
    """Return how far from where it was fitted to lie a landmark comes to lie if it is placed without itself: the
    median, as a share of the map's spread (the root of the mean squared distance from the centre).
    """
    if len(fitted.landmarks) <= PLACED_BY:
        return Score(None, "the map is linear: points lie where they were fitted to lie")
    which, distances = nearest(fitted.landmarks, fitted.landmarks, PLACED_BY, own=np.arange(len(fitted.landmarks)))
    placed = place_among(fitted.places[which.T], distances.T, fitted.attraction)
    spread = np.sqrt(np.square(fitted.places - fitted.places.mean(axis=0)).sum(axis=1).mean())
    apart = np.sqrt(np.square(placed - fitted.places).sum(axis=1))
    ninth = float(np.quantile(apart, 0.9) / spread)
    words = f"median of {len(placed):,} points that were fitted, each placed without itself; nine in ten: {ninth:.3f}"
    return Score(float(np.median(apart) / spread), words)


@dataclass(frozen=True)
class Spread:
    """A score over several seeds.

    Attributes:
        median, least, most: of those that there are; None if there are none.
        words: over how many; why there are none.
    """

    median: float | None
    least: float | None
    most: float | None
    words: str


def over_seeds(measure: Callable[[int], dict[str, Score]], seeds: Iterable[int]) -> dict[str, Spread]:
    """Return how scores spread where the map is fitted anew with each seed.

    Args:
        measure: fits with a seed, and returns scores; the same ones every time.
        seeds: which.
    """
    measured = [measure(seed) for seed in seeds]
    return {name: _spread([scores[name] for scores in measured]) for name in measured[0]}


def _spread(scores: list[Score]) -> Spread:
    values = [score.value for score in scores if score.value is not None]
    if not values:
        return Spread(None, None, None, scores[0].words)
    lacking = f"; {len(scores) - len(values)} of them have none" if len(values) < len(scores) else ""
    return Spread(float(np.median(values)), min(values), max(values), f"over {len(scores)} seeds{lacking}")


def _of(asked: int, count: int, seed: int) -> str:
    if asked == count:
        return f"of {count:,} points"
    return f"of {asked:,} points drawn of {count:,} (seed {seed}), among all"
