"""What a map is worth: its scores, and what each of them says."""

from __future__ import annotations

import numpy as np

from exemplar_ray.explore.spec import ON_POINTS, ExploreOptions
from exemplar_ray.maps.clusters import Clusters
from exemplar_ray.maps.placing import FittedMap
from exemplar_ray.maps.scores import (
    NEIGHBOURS,
    Score,
    agreement,
    continuity,
    knn_accuracy,
    placing_error,
    silhouette,
    trustworthiness,
)

SCORES: dict[str, tuple[str, str]] = {
    "knn_points": (
        "classes, among all activations",
        f"for how many images most of the {NEIGHBOURS} nearest have its class",
    ),
    "knn_map": ("classes, in the map", f"the same of the {NEIGHBOURS} nearest in the map"),
    "silhouette_classes_points": (
        "silhouette of the classes, among all activations",
        "whether images are nearer to their class than to the next one: -1 to 1",
    ),
    "silhouette_classes_map": ("silhouette of the classes, in the map", "the same in the map"),
    "silhouette_clusters": ("silhouette of the clusters", "the same of clusters, where they were made"),
    "adjusted_rand": ("adjusted Rand index", "how clusters agree with classes: 0 is chance, 1 the same"),
    "adjusted_rand_clustered": ("adjusted Rand index, of clustered images", "without those in no cluster"),
    "adjusted_mutual_information": (
        "adjusted mutual information",
        "what clusters say of classes: 0 is chance, 1 everything",
    ),
    "adjusted_mutual_information_clustered": (
        "adjusted mutual information, of clustered images",
        "without those in no cluster",
    ),
    "trustworthiness": ("trustworthiness", "whether neighbours in the map are neighbours: 0 to 1"),
    "continuity": ("continuity", "whether neighbours are neighbours in the map: 0 to 1"),
    "placing_error": (
        "placing error",
        "how far from its place a fitted point comes to lie if it is placed as a new one, over the map's spread",
    ),
}
"""{score: (what it is called, what it says)}, in the order in which they are shown."""

ONCE = ("knn_points", "silhouette_classes_points")
"""Those that no seed changes."""


def measured(
    values: np.ndarray,
    places: np.ndarray,
    labels: np.ndarray,
    clusters: Clusters | None,
    fitted: FittedMap,
    options: ExploreOptions,
    whole: bool,
) -> dict[str, Score]:
    """Score a map.

    Args:
        values: float [points, channels]: the points.
        places: float64 [points, 2]: where they lie.
        labels: int64 [points]: of classes, or of groups of them; -1 for none.
        clusters: of the points; None for none.
        fitted: the map.
        options: what was asked for; what is drawn of many points, its first seed draws for every map.
        whole: whether to compute `ONCE`, too.
    """
    seed = options.seed
    found = {
        "knn_map": knn_accuracy(places, labels, seed=seed),
        "silhouette_classes_map": silhouette(places, labels, seed),
        "trustworthiness": trustworthiness(values, places, seed=seed),
        "continuity": continuity(values, places, seed=seed),
        "placing_error": placing_error(fitted),
    }
    if whole:
        found["knn_points"] = knn_accuracy(values, labels, seed=seed)
        found["silhouette_classes_points"] = silhouette(values, labels, seed)
    if clusters is not None:
        on = values if options.clusters_on == ON_POINTS else places
        found["silhouette_clusters"] = silhouette(on, clusters.of_points, seed)
        found |= agreement(clusters.of_points, labels)
    return {name: found[name] for name in SCORES if name in found}
