"""Maps from end to end: from stores of activations to a map, its scores, and a page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from exemplar_ray.comparisons.same_images import same_rows
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, run_job
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.explore.answer import Answer
from exemplar_ray.explore.asked import ExploreSettings
from exemplar_ray.explore.colours import coloured_by
from exemplar_ray.explore.job_names import MAP, MAPS
from exemplar_ray.explore.spec import ExploreOptions, ExploreSpec, Piece, PointsOf
from exemplar_ray.results.store import Store, open_store
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import versions
from exemplar_ray.storage.hub_uri import refuse_writing

JOB = "explore"
TASKS = "exemplar_ray.explore.tasks"

_IMAGE = ["shard", "row"]


class ExploreJob(Job):
    """Maps the points of a store."""

    name = JOB
    task = f"{TASKS}:make"
    result = MAP
    verb = "map"

    def __init__(self, spec: ExploreSpec, stores: Mapping[PointsOf, Store], threads: int) -> None:
        self.spec, self._stores = spec, stores
        self.items: Sequence[Piece] = [*_maps(spec), *_pictures(spec, stores)]
        self.settings = ExploreSettings(spec, threads)

    def identity(self) -> dict[str, Any]:
        """Return what decides the map."""
        return self.spec.identity()

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps."""
        return {"stores": [of.uri for of in self._stores], "versions": versions()}

    def reduce(self, context: Context) -> Reduced:
        """Write maps, scores and pages."""
        return Reduced(lines=Answer(context, self.spec, self.items, self._stores).write())

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is mapped."""
        return [
            f"{of.name}: {store.network.title}, {of.layer} ({of.pool}), {len(store):,} images of "
            f"{store.shape_of(of.layer, of.pool)[0]:,} channels"
            for of, store in self._stores.items()
        ]


def _maps(spec: ExploreSpec) -> Iterator[Piece]:
    for number, of in enumerate(spec.maps):
        for seed in spec.seeds:
            yield Piece(number, f"map of {of.name}, seed {seed}", seed=seed)


def _pictures(spec: ExploreSpec, stores: Mapping[PointsOf, Store]) -> Iterator[Piece]:
    if not spec.options.thumbnails:
        return
    for number, of in enumerate(spec.shown):
        for shard in stores[of].shards:
            if shard.images:
                yield Piece(number, f"pictures of {of.name}, {shard.name}", shard=shard.name)


def explore(
    store: str,
    out: str | None,
    options: ExploreOptions,
    cluster: Cluster,
    console: Console,
    project: Sequence[str] = (),
    beside: str | None = None,
) -> tuple[JobOutcome, str]:
    """Make a map of a store's points, or those of its pieces that are lacking.

    Args:
        store: whose points the map is fitted to.
        out: where: a run folder of its own; None for below the store.
        project: stores whose points are placed in it: of the same network, as other images.
        beside: a store of the same images in another network, of which the same is made.

    Returns:
        How it ended, and where the map is.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    opened = [open_store(uri) for uri in (store, *project, *([beside] if beside else []))]
    layer, pool = opened[0].chosen(options.layer, options.pool)
    coloured_by(options.colours, next(one.channels for one in opened[0].network.layers if one.name == layer))
    names = _names([one.uri for one in opened])
    sets = [_points_of(one, name, layer, pool) for one, name in zip(opened, names, strict=True)]
    others = opened[1 : 1 + len(project)]
    for other in others:
        _refuse_other_points(opened[0], other, layer)
    if beside:
        _refuse_other_images(opened[0], opened[-1])
    spec = ExploreSpec(sets[0], tuple(sets[1 : 1 + len(project)]), sets[-1] if beside else None, options)
    out = out or f"{store.rstrip('/')}/{MAPS}/{opened[0].folder_of(layer)}-{pool}-{options.method}"
    refuse_writing(out)
    job = ExploreJob(spec, dict(zip(sets, opened, strict=True)), cluster.demand.cpus)
    return run_job(job, out, cluster, console, started), out


def _names(uris: Sequence[str]) -> list[str]:
    """Return what sets are called: as their folders are, or as far as it takes to tell them apart."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of[-count:]) for of in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"'{max(uris, key=uris.count)}' is given twice: name each store once")


def _points_of(store: Store, name: str, layer: str, pool: str) -> PointsOf:
    chosen = store.chosen(layer, pool)
    shape = store.shape_of(*chosen)
    if len(shape) != 1:
        raise UsageError(f"'{store.uri}' has whole maps of '{layer}': points are pooled; store another --pool")
    if not len(store):
        raise UsageError(f"'{store.uri}' has no images: there are no points to map")
    return PointsOf(name, RunFolder(store.uri).full_uri, *chosen, store.digest(*chosen))


def _refuse_other_points(store: Store, other: Store, layer: str) -> None:
    """Refuse to place points of another network, or of other channels, in a map.

    Raises:
        UsageError: something of it is another.
    """
    for what, mine, its in (
        ("weights", store.network.weights_sha256, other.network.weights_sha256),
        ("preprocessing", store.network.preprocess, other.network.preprocess),
        ("channels", *([one.channels for one in of.network.layers if one.name == layer] for of in (store, other))),
    ):
        if mine != its:
            raise UsageError(
                f"'{other.uri}' has other {what} than '{store.uri}': its points have no place in that map; store "
                "activations of the same network, prepared alike"
            )


def _refuse_other_images(store: Store, beside: Store) -> None:
    """Refuse another network's store that is of other images.

    Raises:
        UsageError: some images are in one of the stores only.
    """
    same_rows(store.rows.select(_IMAGE), beside.rows.select(_IMAGE))
