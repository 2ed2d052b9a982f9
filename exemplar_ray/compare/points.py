"""The activations of one layer of a store, as points with what each is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.compare.sides import Readout, ids_of
from exemplar_ray.comparisons.same_images import same_rows
from exemplar_ray.moments import Moments
from exemplar_ray.results.store import Store

NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class Pointed:
    """A set of points, in the order of the store's rows.

    Attributes:
        points: float32 [points, channels], finite.
        rows: what each is of.
        shards: int64 [points]: of which shard each is, from 0, in their order.
        labels: int64 [points]: `NO_LABEL` for none.
        left_out: how many images gave NaN or infinity, and are left out.
    """

    points: np.ndarray
    rows: pa.Table
    shards: np.ndarray
    labels: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.points)

    @property
    def shard_count(self) -> int:
        """Return of how many shards they are."""
        return int(self.shards.max(initial=-1)) + 1

    def by_shard(self) -> list[Moments]:
        """Return the moments of each shard."""
        ends = np.searchsorted(self.shards, np.arange(self.shard_count + 1))
        return [Moments.of(self.points[ends[i] : ends[i + 1]]) for i in range(self.shard_count)]

    def by_class(self) -> dict[int, Moments]:
        """Return the moments of each class, by label."""
        return {
            int(label): Moments.of(self.points[self.labels == label]) for label in np.unique(self.labels) if label >= 0
        }

    def constant(self) -> np.ndarray:
        """Return which channels are the same for all images: bool [channels]."""
        return np.asarray((self.points == self.points[:1]).all(axis=0))

    def chosen(self, rows: np.ndarray) -> Pointed:
        """Return some of them, ascending."""
        return Pointed(self.points[rows], self.rows.take(rows), _numbered(self.shards[rows]), self.labels[rows])


def pointed(store: Store, readout: Readout) -> Pointed:
    """Read a layer's activations."""
    points = _read(store, readout)
    return _finite(points, store.rows, np.isfinite(points).all(axis=1))


def paired(stores: tuple[Store, Store], readouts: tuple[Readout, Readout], by: str) -> tuple[Pointed, Pointed]:
    """Read two layers' activations over the same images, in the same order.

    Args:
        by: what names an image in both, see `options.BY`.

    Raises:
        UsageError: the stores are of other images.
    """
    order = same_rows(*(ids_of(store, by) for store in stores))
    ones, others = (_read(store, readout) for store, readout in zip(stores, readouts, strict=True))
    others = others[order]
    finite = np.isfinite(ones).all(axis=1) & np.isfinite(others).all(axis=1)
    return _finite(ones, stores[0].rows, finite), _finite(others, stores[1].rows.take(order), finite)


def _read(store: Store, readout: Readout) -> np.ndarray:
    return store.array(*readout).astype(np.float32, copy=False)


def _finite(points: np.ndarray, rows: pa.Table, finite: np.ndarray) -> Pointed:
    left_out = int((~finite).sum())
    if left_out:
        points, rows = points[finite], rows.filter(pa.array(finite))
    # One piece, as many of them slow down what takes rows.
    rows = rows.combine_chunks()
    shards = pc.dictionary_encode(rows["shard"]).combine_chunks().indices.to_numpy().astype(np.int64)
    labels = pc.fill_null(rows["label"], NO_LABEL).to_numpy().astype(np.int64)
    return Pointed(points, rows, shards, labels, left_out)


def _numbered(shards: np.ndarray) -> np.ndarray:
    return np.unique(shards, return_inverse=True)[1]
