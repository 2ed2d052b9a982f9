"""Fit a map to points: by principal components, UMAP or t-SNE; the same bytes from the same points and seed."""

from __future__ import annotations

import warnings
from importlib import metadata

import numpy as np

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.maps.libraries import library
from exemplar_ray.maps.neighbours import nearest
from exemplar_ray.maps.placing import PLACED_BY, FittedMap, check_points
from exemplar_ray.maps.principal import components_of, reduced, refuse_all_the_same

PCA, UMAP, TSNE = "pca", "umap", "tsne"
METHODS = (PCA, UMAP, TSNE)

LANDMARKS = 20_000
"""Of more points than these, UMAP and t-SNE are fitted to so many of them."""

COMPONENTS = 50
"""Points of more numbers are reduced to so many principal components before UMAP and t-SNE."""

# What the libraries themselves take: UMAP's n_neighbors, t-SNE's perplexity.
_USUAL_NEIGHBOURS = {UMAP: 15, TSNE: 30}

# How many neighbours t-SNE needs, by its perplexity (van der Maaten, "Accelerating t-SNE", 2014).
_PER_PERPLEXITY = 3


def fit(
    points: np.ndarray,
    method: str,
    seed: int = 0,
    landmarks: int = LANDMARKS,
    components: int | None = COMPONENTS,
    neighbours: int | None = None,
    min_dist: float = 0.1,
) -> FittedMap:
    """Fit a map to points.

    It is fitted by one thread, to exact neighbours. Where the points themselves lie, `place` tells too: landmarks lie
    where they were fitted to lie, and where several are equal, all lie where the first of them does.

    Args:
        points: float [points, channels]; may be memory-mapped.
        method: 'pca', 'umap' (umap-learn) or 'tsne' (openTSNE).
        seed: of what is drawn: the landmarks, and what the method itself draws.
        landmarks: of more points than these, UMAP and t-SNE are fitted to so many of them, drawn by their rows.
        components: to how many principal components points are reduced before UMAP and t-SNE; None for none. Those
            of no more numbers stay as they are.
        neighbours: UMAP's n_neighbors (15), or t-SNE's perplexity (30).
        min_dist: UMAP's.

    Raises:
        UsageError: a map of these would mean nothing, the method is unknown, or its library is not installed.
    """
    if method not in METHODS:
        raise UsageError(f"no method '{method}' makes a map; {near_matches(method, METHODS)}")
    _refuse_what_has_no_map(points, seed)
    if method == PCA:
        return _linear(points, seed)
    count = _USUAL_NEIGHBOURS[method] if neighbours is None else neighbours
    rows = drawn(len(points), landmarks, seed)
    _refuse_few(len(rows), method, count)
    mean, directions, how = _reduction(points, components, seed)
    inside = reduced(points[rows], mean, directions)
    refuse_all_the_same(inside)
    places, attraction, said = (_umap if method == UMAP else _tsne)(inside, count, seed, min_dist)
    of = f"{len(points):,} points" if len(rows) == len(points) else f"{len(rows):,} of {len(points):,} points, drawn"
    words = (
        f"{said}, fitted to {of}{how}; seed {seed}. Other points lie among their {PLACED_BY} nearest of those that it "
        "was fitted to, each by itself."
    )
    return FittedMap(method, mean, directions, inside, places, rows, attraction, words)


def _linear(points: np.ndarray, seed: int) -> FittedMap:
    found = components_of(points, 2, seed)
    of, drawn_by = f"{len(points):,} points", ""
    if found.of < len(points):
        of, drawn_by = f"{found.of:,} of {of}, drawn", f"; seed {seed}"
    words = f"The first two principal components of {of}: {found.share:.1%} of the variance{drawn_by}."
    nothing = np.zeros((0, 2))
    return FittedMap(PCA, found.mean, found.directions, nothing, nothing, np.zeros(0, np.int64), (1.0, 1.0), words)


def _reduction(points: np.ndarray, components: int | None, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    channels = points.shape[1]
    if components is None or channels <= components:
        return np.zeros(channels), np.zeros((channels, 0)), ""
    found = components_of(points, components, seed)
    count = found.directions.shape[1]
    words = f", reduced to {count} principal components that hold {found.share:.1%} of the variance"
    return found.mean, found.directions, words


def _umap(inside: np.ndarray, count: int, seed: int, min_dist: float) -> tuple[np.ndarray, tuple[float, float], str]:
    umap, one_thread = library("umap"), library("threadpoolctl").threadpool_limits(1)
    # UMAP counts a point among its neighbours.
    others, distances = nearest(inside, inside, count - 1, own=np.arange(len(inside)))
    itself = np.arange(len(inside))[:, None]
    known = np.hstack([itself, others]), np.hstack([np.zeros(itself.shape), distances]).astype(np.float32)
    with one_thread, warnings.catch_warnings():
        # That its own transform is not possible without its own index, and that a seed takes one thread.
        warnings.simplefilter("ignore")
        fitted = umap.UMAP(
            n_neighbors=count,
            min_dist=min_dist,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=known,
            transform_seed=seed,
        ).fit(inside.astype(np.float32))
    said = f"UMAP (umap-learn {metadata.version('umap-learn')}) with {count} neighbours and min_dist {min_dist:g}"
    return _finite(fitted.embedding_), (float(fitted._a), float(fitted._b)), said


def _tsne(inside: np.ndarray, count: int, seed: int, _min_dist: float) -> tuple[np.ndarray, tuple[float, float], str]:
    tsne, one_thread = library("openTSNE"), library("threadpoolctl").threadpool_limits(1)
    affinity, initialization = library("openTSNE.affinity"), library("openTSNE.initialization")
    precomputed = library("openTSNE.nearest_neighbors").PrecomputedNeighbors
    others, distances = nearest(inside, inside, _PER_PERPLEXITY * count, own=np.arange(len(inside)))
    with one_thread:
        affinities = affinity.PerplexityBasedNN(
            perplexity=count, knn_index=precomputed(others, distances), n_jobs=1, random_state=seed
        )
        # As openTSNE starts from principal components, with exact ones; the seed is in the jitter.
        found = components_of(inside, 2, seed)
        start = initialization.rescale(reduced(inside, found.mean, found.directions))
        start = initialization.jitter(start, random_state=seed)
        places = tsne.TSNE(n_jobs=1, random_state=seed, initialization=start).fit(affinities=affinities)
    said = f"t-SNE (openTSNE {metadata.version('opentsne')}) with perplexity {count}"
    return _finite(np.asarray(places)), (1.0, 1.0), said


def _finite(places: np.ndarray) -> np.ndarray:
    if not np.isfinite(places).all():
        raise UsageError(
            "the method leaves some points without a place: they have no neighbours; take the method 'pca'"
        )
    return places.astype(np.float64)


def _refuse_what_has_no_map(points: np.ndarray, seed: int) -> None:
    check_points(points)
    if len(points) < 3 or points.shape[1] < 2:
        raise UsageError(
            f"{len(points):,} points of {points.shape[1]:,} numbers have no map: it takes 3 points of 2 numbers"
        )
    if not 0 <= seed < 2**32:
        raise UsageError(f"a seed is from 0 to 2^32 - 1, not {seed}")


def _refuse_few(count: int, method: str, neighbours: int) -> None:
    least = max(PLACED_BY, neighbours if method == UMAP else _PER_PERPLEXITY * neighbours) + 1
    if count < least or neighbours < 2:
        name = f"{neighbours} neighbours" if method == UMAP else f"a perplexity (neighbours) of {neighbours}"
        raise UsageError(
            f"a map of {count:,} points by {method} with {name} would mean nothing: it takes {least:,} points, and 2 "
            "neighbours or more; give other numbers, or take the method 'pca'"
        )
