"""Clusters of points, or of where they lie in a map: scikit-learn's DBSCAN, HDBSCAN and k-means.

What each needs to be told is taken from the points where it is not said, by rules that `Clusters.words` repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.maps.libraries import library
from exemplar_ray.maps.neighbours import nearest
from exemplar_ray.maps.placing import check_points

DBSCAN, HDBSCAN, KMEANS = "dbscan", "hdbscan", "kmeans"
METHODS = (DBSCAN, HDBSCAN, KMEANS)

NOISE = -1
"""The cluster of points that are in none."""

MOST_CLUSTERED = 20_000
"""Of more points than these so many are clustered; others join the nearest of these."""

# k-means' number of clusters is looked for up to here, on so many points.
_MOST_CLUSTERS = 20
_TRIED_ON = 2000
_STARTS = 10

# HDBSCAN's smallest cluster: a share of the points, and at least so many.
_SMALLEST_SHARE = 0.01
_SMALLEST = 5

# DBSCAN's min_samples: as many neighbours as a map is made of; below that it has no density to speak of. Sander et al.
# (1998) say twice the number of channels, Schubert et al. ("DBSCAN revisited, revisited", 2017) more where there are
# many points.
_MIN_SAMPLES = 15


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which cluster each point is in.

    Attributes:
        of_points: int64 [points]: 0 is the largest cluster; `NOISE` for none.
        count: how many clusters there are.
        words: how they came about, for people.
    """

    of_points: np.ndarray
    count: int
    words: str


def cluster(points: np.ndarray, method: str, on: str, seed: int = 0, size: float | None = None) -> Clusters:
    """Cluster points.

    Args:
        points: float [points, channels]: the points themselves, or where they lie in a map.
        method: 'dbscan', 'hdbscan' or 'kmeans'.
        on: what the points are, for the words, such as 'the map' or 'the points'.
        seed: of what is drawn: which points where there are many, and k-means' starts.
        size: what the method needs to know; from the points if None. k-means: how many clusters there are, such as the
            number of classes; otherwise the number from 2 to 20 with the highest silhouette (Rousseeuw, 1987). HDBSCAN:
            how many points the smallest cluster has; otherwise 1 % of them, and 5 at least. DBSCAN: how far neighbours
            are from each other (eps); otherwise where the sorted distances to the last of min_samples points, itself
            the first, bend: furthest below the line from the least to the largest.

    Raises:
        UsageError: there are too few points, or the size is none; or scikit-learn is not installed.
    """
    if method not in METHODS:
        raise UsageError(f"no method '{method}' makes clusters; {near_matches(method, METHODS)}")
    check_points(points)
    if len(points) <= 2 * _MIN_SAMPLES:
        raise UsageError(f"clusters of {len(points):,} points mean nothing: give more than {2 * _MIN_SAMPLES}")
    if size is not None and not 0 < size < (np.inf if method == DBSCAN else len(points)):
        raise UsageError(f"{method} cannot take the size {size:g}: see what it is for this method")
    rows = drawn(len(points), MOST_CLUSTERED, seed)
    some = np.asarray(points[rows], np.float64)
    find = {DBSCAN: _dbscan, HDBSCAN: _hdbscan, KMEANS: _kmeans}[method]
    # Threads would add up in any order.
    with library("threadpoolctl").threadpool_limits(1):
        found, said = find(some, seed, size)
    found = _by_size(found)
    count = int(found.max()) + 1
    words = f"{said}, on {on}: {count:,} clusters"
    if len(rows) < len(points):
        closest, _ = nearest(points, points[rows], 1)
        found = found[closest[:, 0]]
        words += (
            f" of {len(rows):,} points drawn of {len(points):,} (seed {seed}), which the others join by the nearest"
        )
    outside = float((found == NOISE).mean())
    return Clusters(found, count, words + (f"; {outside:.1%} of the points are in none." if method != KMEANS else "."))


def _dbscan(points: np.ndarray, _seed: int, size: float | None) -> tuple[np.ndarray, str]:
    how = ""
    if size is None:
        _, distances = nearest(points, points, _MIN_SAMPLES - 1, own=np.arange(len(points)))
        size, how = knee(distances[:, -1]), f", where the sorted distances to the {_MIN_SAMPLES - 1}th neighbour bend"
    found = library("sklearn.cluster").DBSCAN(eps=size, min_samples=_MIN_SAMPLES).fit_predict(points)
    return found, f"DBSCAN with min_samples {_MIN_SAMPLES} and eps {size:.4g}{how}"


def knee(values: np.ndarray) -> float:
    """Return the value where the curve of the sorted values bends: furthest below the line between its ends.

    Satopää et al., "Finding a 'kneedle' in a haystack" (2011), without smoothing. Never 0, unless all are.

    >>> knee(np.array([1.0, 1.1, 1.2, 1.3, 5.0, 9.0]))
    1.3
    """
    ascending = np.sort(values)
    line = np.linspace(ascending[0], ascending[-1], len(ascending))
    bend = float(ascending[(line - ascending).argmax()])
    least = ascending[ascending > 0][:1]
    if not least.size:
        raise UsageError(
            "points lie on one another, and nothing is near or far: say DBSCAN's eps, or take another method"
        )
    return max(bend, float(least[0]))


def _hdbscan(points: np.ndarray, _seed: int, size: float | None) -> tuple[np.ndarray, str]:
    smallest = max(_SMALLEST, round(_SMALLEST_SHARE * len(points))) if size is None else max(2, round(size))
    how = f" ({_SMALLEST_SHARE:.0%} of the points, {_SMALLEST} at least)" if size is None else ""
    model = library("sklearn.cluster").HDBSCAN(min_cluster_size=smallest, min_samples=_SMALLEST, copy=True)
    return model.fit_predict(points), f"HDBSCAN with min_cluster_size {smallest}{how} and min_samples {_SMALLEST}"


def _kmeans(points: np.ndarray, seed: int, size: float | None) -> tuple[np.ndarray, str]:
    count = _best_count(points, seed) if size is None else round(size)
    how = f", the number from 2 to {_MOST_CLUSTERS} with the highest silhouette" if size is None else ""
    if count < 2:
        raise UsageError("k-means makes 2 clusters at least")
    return _means(
        points, count, seed
    ), f"k-means with {count} clusters{how}, the best of {_STARTS} starts (seed {seed})"


def _means(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    return library("sklearn.cluster").KMeans(count, n_init=_STARTS, random_state=seed).fit_predict(points)


def _best_count(points: np.ndarray, seed: int) -> int:
    some = points[drawn(len(points), _TRIED_ON, seed)]
    distinct = len(np.unique(some, axis=0))
    if distinct < 3:
        raise UsageError(
            "there are fewer than 3 different points: k-means has nothing to choose; say how many clusters"
        )
    silhouette = library("sklearn.metrics").silhouette_score
    counts = range(2, min(_MOST_CLUSTERS, distinct - 1) + 1)
    return max(counts, key=lambda count: float(silhouette(some, _means(some, count, seed))))


def _by_size(found: np.ndarray) -> np.ndarray:
    """Number clusters anew, the largest first; of equals the one that was first."""
    names, where, sizes = np.unique(found[found != NOISE], return_inverse=True, return_counts=True)
    anew = np.empty(len(names), np.int64)
    anew[np.argsort(-sizes, kind="stable")] = np.arange(len(names))
    result = np.full(len(found), NOISE, np.int64)
    result[found != NOISE] = anew[where]
    return result
