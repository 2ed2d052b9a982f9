"""Which map is made, and of what: the request as the user states it, and what it comes to. Neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.explore.groups import labels_of_groups
from exemplar_ray.keys import key

# Counted up when maps come out otherwise than before.
FORMAT_VERSION = 1

METHODS = ("umap", "tsne", "pca")
CLUSTERS = ("hdbscan", "dbscan", "kmeans", "none")
ON_MAP, ON_POINTS = "map", "points"

_NUMBERS: dict[str, tuple[Any, float]] = {
    "cluster_size": ((int, float), 0),
    "neighbours": (int, 2),
    "min_dist": ((int, float), 0),
    "landmarks": (int, 3),
    "components": (int, 0),
    "seed": (int, 0),
    "seeds": (int, 1),
}
"""{key: (its type, the least that it may be)}"""


@dataclass(frozen=True)
class ExploreOptions:
    """Which map is made. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    layer: str | None = key(None, "NAME", "whose activations are the points (default: the store's only layer)")
    pool: str | None = key(None, "NAME", "how they are pooled (default: the store's only pool)")
    method: str = key(METHODS[0], "NAME", "umap (umap-learn; default), tsne (openTSNE) or pca")
    clusters: str = key(CLUSTERS[0], "NAME", "hdbscan (default), dbscan, kmeans (scikit-learn), or none")
    clusters_on: str = key(ON_MAP, "WHERE", "clusters of where points lie in the map (default), or of the points")
    cluster_size: float | None = key(
        None, "N", "HDBSCAN's smallest cluster, DBSCAN's eps, k-means' number of clusters (default: from the points)"
    )
    neighbours: int | None = key(None, "N", "UMAP's n_neighbors (default: 15), or t-SNE's perplexity (default: 30)")
    min_dist: float = key(0.1, "D", "UMAP's (default: 0.1)")
    landmarks: int = key(20_000, "N", "of more points UMAP and t-SNE are fitted to so many (default: 20000)")
    components: int = key(50, "N", "principal components before UMAP and t-SNE; 0 for none (default: 50)")
    seed: int = key(0, "N", "of what is drawn (default: 0)")
    seeds: int = key(3, "N", "how many seeds tell how scores spread; the first one's map is shown (default: 3)")
    colours: str | None = key(
        None, "CHANNELS", "that the page can be coloured by: 0-9, all, none (default: all, up to 100 million numbers)"
    )
    groups: Mapping[str, Any] | None = key(
        None,
        "MAPPING",
        "classes taken together, by their labels, which scores are of then: '{dog: 151-268, cat: 281-285}'",
        flow=True,
    )
    thumbnails: bool = key(True, "", "show the images on the page (default: yes)")

    def __post_init__(self) -> None:
        for name, there in (("method", METHODS), ("clusters", CLUSTERS), ("clusters_on", (ON_MAP, ON_POINTS))):
            if getattr(self, name) not in there:
                raise UsageError(f"unknown {name} '{getattr(self, name)}'; {near_matches(getattr(self, name), there)}")
        for name, (kind, least) in _NUMBERS.items():
            value: Any = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not value >= least):
                what = "a whole number" if kind is int else "a number"
                raise UsageError(f"{name} is {what} from {least:g}, not {value!r}")
        if self.groups is not None:
            labels_of_groups(self.groups)
        if not isinstance(self.thumbnails, bool):
            raise UsageError(f"thumbnails is true or false, not {self.thumbnails!r}")
        if self.seed + self.seeds > 2**32:
            raise UsageError("a seed is below 2^32")


@dataclass(frozen=True)
class PointsOf:
    """A set of points: a layer of a store."""

    name: str
    """What people call the set: the store's folder."""
    uri: str
    """Of the store, which means the same in every process."""
    layer: str
    pool: str
    digest: str
    """Of its rows and activations, see `results.store.Store.digest`."""

    def identity(self) -> dict[str, Any]:
        """Return what decides its points."""
        return {name: getattr(self, name) for name in ("name", "layer", "pool", "digest")}


@dataclass(frozen=True)
class ExploreSpec:
    """What is made: small, and pickles to every worker."""

    fitted: PointsOf
    """What the map is fitted to."""
    projected: tuple[PointsOf, ...]
    """What is placed in it."""
    beside: PointsOf | None
    """The same images in another network, which get a map of their own."""
    options: ExploreOptions

    @property
    def maps(self) -> tuple[PointsOf, ...]:
        """Return the sets that maps are fitted to."""
        return (self.fitted,) if self.beside is None else (self.fitted, self.beside)

    @property
    def shown(self) -> tuple[PointsOf, ...]:
        """Return the sets whose images are shown: those of the first map."""
        return (self.fitted, *self.projected)

    @property
    def seeds(self) -> range:
        """Return the seeds that maps are fitted with; the first one's is shown."""
        return range(self.options.seed, self.options.seed + self.options.seeds)

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, under the user's key names."""
        identity = {
            "format": FORMAT_VERSION,
            **asdict(self.options),
            "of": self.fitted.identity(),
            "project": [of.identity() for of in self.projected],
            "beside": None if self.beside is None else self.beside.identity(),
        }
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps(identity))


@dataclass(frozen=True)
class Piece:
    """What one task makes: a map of a set with a seed, or the small pictures of a shard."""

    of: int
    """Which of the spec's `maps`; of pictures, which of its `shown`."""
    name: str
    seed: int | None = None
    """Of a map."""
    shard: str | None = None
    """Of pictures."""

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "piece"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "of": self.of, "seed": self.seed, "shard": self.shard}

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Nothing of it can change: the stores' digests are in the run's identity."""
        return None

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Nor can that be in doubt."""
        return False
