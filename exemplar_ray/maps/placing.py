"""A fitted map, and where other points lie in it: by each point and the map alone, whoever comes along.

umap-learn and openTSNE place new points too, but where one lies depends on the batch: among 10,000 others, held-out
digits move by 1.7 % of the map's spread with umap-learn 0.5.12 (the median; the worst by 78 %), and some across the map
with openTSNE 1.0.4. Here a point is placed among its nearest landmarks, the points that the map was fitted to, in three
steps:

1. Its `PLACED_BY` nearest landmarks are found exactly, in the space that the map was fitted in.
2. Each gets a weight: its membership in the fuzzy set of the point's neighbours as UMAP defines it, exp(-(d - d1) /
   sigma) with sigma such that the memberships sum to log2 of their number (McInnes, Healy and Melville, "UMAP", 2018,
   section 3.1), times (d1 / d)^2 as in Shepard's interpolation (1968). So a point that comes near a landmark comes to
   lie near it in the map, and one that equals a landmark lies where that does.
3. From the landmarks' weighted mean the point is moved to where the map's own attraction to them is in balance: it
   minimises the sum of weights times log(1 + a r^2b), r being distances in the map, with UMAP's a and b, or 1 and 1 as
   in t-SNE (the attractive part of both methods' losses), by iteratively reweighted means. Each of these lowers that
   sum, so there is no rate to choose. A point whose neighbours lie in two clusters joins one of them instead of lying
   between.

What repels in both methods is left out, as it takes all landmarks, or draws. The libraries' own placing has it and
keeps no more neighbours: of a held-out digit's 15 nearest landmarks 51 % are its nearest in the map by umap-learn, 53 %
by openTSNE; 51 % and 54 % here. A landmark placed as if it were new, without itself, lies 0.7 % (UMAP) or 1.5 % (t-SNE)
of the map's spread from where it was fitted to lie; umap-learn leaves 1.2 % between, with the point itself among the
landmarks.

Every number is made by elementwise operations, or sums over few of them in a fixed order, in blocks of one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exemplar_ray.errors import UsageError
from exemplar_ray.maps.neighbours import Distances, nearest_by
from exemplar_ray.maps.principal import reduced

PLACED_BY = 15
"""How many landmarks say where a point lies."""

_BLOCK = 256
_HALVINGS = 64
_MOVES = 10

# Nearer to a landmark than this share of the map's spread, its pull does not grow further.
_LEAST_SQUARED = 1e-12

_FORM = 1


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map that was fitted to points, and places others.

    Attributes:
        method: 'pca', 'umap' or 'tsne'.
        mean: float64 [channels]: what is taken off a point.
        directions: float64 [channels, components]: along which it is then looked at; [channels, 0] where the map was
            fitted to the points as they are.
        landmarks: float64 [landmarks, components]: the points that the map was fitted to, in that space; none for
            'pca', which is linear.
        places: float64 [landmarks, 2]: where these lie.
        rows: int64 [landmarks]: which rows these were of the points given to be fitted.
        attraction: a and b of 1 / (1 + a r^2b), which the map likens its distances to.
        words: how the map came about, for people.
    """

    method: str
    mean: np.ndarray
    directions: np.ndarray
    landmarks: np.ndarray
    places: np.ndarray
    rows: np.ndarray
    attraction: tuple[float, float]
    words: str

    def place(self, points: np.ndarray) -> np.ndarray:
        """Return where points lie in the map; the same bits for a point in whatever company and order.

        Args:
            points: float [points, channels], of the kind that the map was fitted to.

        Returns:
            float64 [points, 2].

        Raises:
            UsageError: these are no such points, or not all are finite.
        """
        check_points(points)
        if points.shape[1] != len(self.mean):
            raise UsageError(
                f"the map is of points of {len(self.mean):,} numbers, these have {points.shape[1]:,}: "
                "give the same layer, pooled alike"
            )
        if not len(self.landmarks):
            return reduced(points, self.mean, self.directions)
        distances = Distances(self.landmarks)
        found = np.empty((len(points), 2))
        for first in range(0, len(points), _BLOCK):
            some = points[first : first + _BLOCK]
            whole = np.concatenate([some, np.repeat(some[-1:], _BLOCK - len(some), axis=0)])
            found[first : first + _BLOCK] = self._place_block(whole, distances)[: len(some)]
        return found

    def _place_block(self, points: np.ndarray, distances: Distances) -> np.ndarray:
        inside = reduced(points, self.mean, self.directions)
        which, away = nearest_by(distances, inside, min(PLACED_BY, len(self.landmarks)))
        return place_among(self.places[which.T], away.T, self.attraction)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the map as arrays without objects, as `numpy.savez` takes them; `from_arrays` reads them."""
        return {
            "form": np.array(_FORM),
            "method": np.array(self.method),
            "mean": self.mean,
            "directions": self.directions,
            "landmarks": self.landmarks,
            "places": self.places,
            "rows": self.rows,
            "attraction": np.array(self.attraction),
            "words": np.array(self.words),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FittedMap:
        """Return the map that `to_arrays` wrote.

        Raises:
            UsageError: these are not a map's, or one of another version.
        """
        if "form" not in arrays or int(arrays["form"]) != _FORM:
            raise UsageError("these arrays are no map that this version knows: fit the map again")
        a, b = arrays["attraction"].tolist()
        named = {name: arrays[name] for name in ("mean", "directions", "landmarks", "places", "rows")}
        return cls(method=str(arrays["method"]), attraction=(a, b), words=str(arrays["words"]), **named)


def place_among(places: np.ndarray, distances: np.ndarray, attraction: tuple[float, float]) -> np.ndarray:
    """Place points among their nearest landmarks.

    Args:
        places: float64 [landmarks, points, 2]: where each point's nearest landmarks lie, the nearest first.
        distances: float64 [landmarks, points]: how far from these it is, ascending.
        attraction: a and b of the map.

    Returns:
        float64 [points, 2].
    """
    distances = np.ascontiguousarray(distances)
    x, y = (np.ascontiguousarray(places[..., axis]) for axis in (0, 1))
    nearest_one = distances[0]
    same = nearest_one == 0
    ratio = np.divide(nearest_one, distances, out=np.zeros_like(distances), where=distances > 0)
    weights = memberships(distances) * ratio * ratio
    weights[0] = 1
    a, b = attraction
    at_x, at_y = _mean(x, y, weights)
    for _ in range(_MOVES):
        apart_x, apart_y = x - at_x, y - at_y
        squared = np.maximum(apart_x * apart_x + apart_y * apart_y, _LEAST_SQUARED)
        # The derivative of log(1 + a s^b) by s, less factors that are the same for all.
        power = np.exp(b * np.log(squared))
        at_x, at_y = _mean(x, y, weights * (power / squared) / (1 + a * power))
    return np.stack([np.where(same, x[0], at_x), np.where(same, y[0], at_y)], axis=1)


def memberships(distances: np.ndarray) -> np.ndarray:
    """Return how much each neighbour is one, by UMAP's kernel: 1 for the nearest, falling off so that they sum to log2
    of their number.

    Args:
        distances: float64 [neighbours, points], ascending.

    Returns:
        float64 like `distances`.
    """
    beyond = distances - distances[0]
    wanted = np.log2(len(distances))
    least, most = np.zeros(beyond.shape[1]), beyond[-1] * len(distances)
    for _ in range(_HALVINGS):
        width = (least + most) / 2
        much = _kernel(beyond, width).sum(axis=0) > wanted
        least, most = np.where(much, least, width), np.where(much, width, most)
    return _kernel(beyond, (least + most) / 2)


def _kernel(beyond: np.ndarray, width: np.ndarray) -> np.ndarray:
    """exp(-beyond / width); where the width is 0, only what is not beyond counts."""
    scaled = np.divide(beyond, width, out=np.where(beyond > 0, np.inf, 0.0), where=width > 0)
    return np.exp(-scaled)


def _mean(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = weights.sum(axis=0)
    return (weights * x).sum(axis=0) / total, (weights * y).sum(axis=0) / total


def check_points(points: np.ndarray) -> None:
    """Refuse what are no points.

    Raises:
        UsageError: it is no table of numbers, or not all are finite.
    """
    if points.ndim != 2 or not np.issubdtype(points.dtype, np.floating):
        raise UsageError(
            f"points are a table of floats, one point a row; these are {points.dtype} {list(points.shape)}"
        )
    rows = max(1, 2**22 // max(1, points.shape[1]))
    for first in range(0, len(points), rows):
        bad = np.flatnonzero(~np.isfinite(points[first : first + rows]).all(axis=1))
        if bad.size:
            raise UsageError(f"point {first + bad[0]:,} is not finite (NaN or infinite): leave such points out")
