"""What a worker does for a map: fit one with a seed and score it, or make the small pictures of a shard.

Named by the driver as `module:function`; see `executor.cluster`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.thumbnails import thumbnails
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.job import Made
from exemplar_ray.explore.asked import ExploreSettings
from exemplar_ray.explore.groups import grouped
from exemplar_ray.explore.job_names import FITTED_PART, PICTURES_PART, PLACES_PART, SCORES_PART
from exemplar_ray.explore.measured import measured
from exemplar_ray.explore.spec import ON_POINTS, ExploreSpec, Piece, PointsOf
from exemplar_ray.maps import clusters, projections
from exemplar_ray.maps.clusters import Clusters
from exemplar_ray.maps.placing import FittedMap
from exemplar_ray.results.store import Store, open_store

PLACES = pa.schema(
    [
        ("set", pa.int64()),
        ("position", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("cluster", pa.int64()),
    ]
)
"""Where points lie: of which set, in which of its store's rows, and in which cluster; null for points that were placed
later, `maps.clusters.NOISE` for none."""
_PICTURES = pa.schema([("row", pa.int64()), ("picture", pa.binary())])


@dataclass(frozen=True, eq=False)
class Points:
    """The points of a store that can be placed.

    Attributes:
        values: float [points, channels], finite.
        positions: int64 [points]: which of the store's rows they are.
        labels: int64 [points]: of classes, or of groups of them; -1 for none.
    """

    values: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def make(settings: ExploreSettings, given: tuple[int, Piece]) -> Made:
    """Make a map, or pictures."""
    _, piece = given
    if piece.shard is not None:
        return _pictures(settings.spec.shown[piece.of], piece.shard, settings.threads)
    return _map(settings.spec, piece)


def _map(spec: ExploreSpec, piece: Piece) -> Made:
    options, seed = spec.options, piece.seed or 0
    points = points_of(spec.maps[piece.of], options.groups)
    fitted = projections.fit(
        points.values,
        options.method,
        seed,
        options.landmarks,
        options.components or None,
        options.neighbours,
        options.min_dist,
    )
    places = fitted.place(points.values)
    found = _clusters(spec, points.values, places, seed)
    is_shown = seed == options.seed
    scores = measured(points.values, places, points.labels, found, fitted, options, is_shown)
    said = {
        "map": fitted.words,
        "clusters": None if found is None else found.words,
        "scores": {name: asdict(score) for name, score in scores.items()},
    }
    files = {SCORES_PART: json.dumps(said, indent=1).encode()}
    if not is_shown:
        return Made(files)
    tables = [_table(0, points.positions, places, None if found is None else found.of_points)]
    if piece.of == 0:
        tables += [_projected(number, of, fitted) for number, of in enumerate(spec.projected, start=1)]
    files |= {PLACES_PART: _parquet(pa.concat_tables(tables)), FITTED_PART: _arrays(fitted.to_arrays())}
    return Made(files)


def points_of(of: PointsOf, groups: Mapping[str, Any] | None = None) -> Points:
    """Read a store's points. Rows that are not finite numbers have no place, and are left out.

    Args:
        groups: see `ExploreOptions.groups`.

    Raises:
        UsageError: the store is not the one that it was, or no row is left.
    """
    store = opened(of)
    values = store.array(of.layer, of.pool)
    finite = np.isfinite(values).all(axis=1)
    labels = store.rows["label"].fill_null(-1).to_numpy()
    if groups:
        labels = grouped(labels, groups)
    positions = np.flatnonzero(finite)
    if not len(positions):
        raise UsageError(f"'{of.uri}': no image has finite activations of '{of.layer}'")
    if len(positions) < len(values):
        values, labels = values[positions], labels[positions]
    return Points(values, positions, labels)


def opened(of: PointsOf) -> Store:
    """Open the store of a set of points.

    Raises:
        UsageError: it is not the one that it was.
    """
    store = open_store(of.uri)
    if store.digest(of.layer, of.pool) != of.digest:
        raise UsageError(f"'{of.uri}' has changed since this command began; run it again")
    return store


def _clusters(spec: ExploreSpec, values: np.ndarray, places: np.ndarray, seed: int) -> Clusters | None:
    options = spec.options
    if options.clusters == "none":
        return None
    on, what = (values, "the points") if options.clusters_on == ON_POINTS else (places, "the map")
    return clusters.cluster(on, options.clusters, what, seed, options.cluster_size)


def _projected(number: int, of: PointsOf, fitted: FittedMap) -> pa.Table:
    points = points_of(of)
    return _table(number, points.positions, fitted.place(points.values), None)


def _table(number: int, positions: np.ndarray, places: np.ndarray, of_clusters: np.ndarray | None) -> pa.Table:
    known = pa.nulls(len(positions), pa.int64()) if of_clusters is None else pa.array(of_clusters)
    columns = [np.full(len(positions), number), positions, places[:, 0], places[:, 1], known]
    return pa.table([pa.array(column) for column in columns], schema=PLACES)


def _pictures(of: PointsOf, shard: str, threads: int) -> Made:
    store = opened(of)
    rows = store.ids_of(shard)["row"].to_pylist()
    [given] = [one for one in store.shards if one.name == shard]
    made = list(thumbnails(given, rows, store.network.preprocess, threads))
    table = pa.table([[row for row, _ in made], [picture for _, picture in made]], schema=_PICTURES)
    return Made({PICTURES_PART: _parquet(table)}, {"pictures": len(made)})


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _arrays(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
