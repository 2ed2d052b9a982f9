"""A store of activations, read: arrays, and the ids of their rows in the same order."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exemplar_ray.activations.job_names import INDEX, MOMENTS
from exemplar_ray.activations.moments_table import from_parquet
from exemplar_ray.activations.rows_table import IDS, read_groups, read_values
from exemplar_ray.activations.spec import ActivationsSpec, Stored
from exemplar_ray.data.planned_images import PlannedImages
from exemplar_ray.data.shard import Shard
from exemplar_ray.data.subset import Subset
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.moments import Moments
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder


class _File(NamedTuple):
    """A file of one layer and pool: the rows of a shard."""

    shard: str
    name: str
    first_row: int
    rows: int
    bytes: int
    sha256: str


class Store:
    """The activations of a set of images. Make one with `open_store`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        values = folder.read_run()
        spec = values.get("spec") or {}
        if "pools" not in spec:
            raise UsageError(f"'{folder.uri}' is no store of activations; exemplar-ray activations makes one")
        summary = folder.read_json(SUMMARY) or {}
        if summary.get("fingerprint") != values["fingerprint"] or not folder.exists(INDEX):
            raise UsageError(f"'{folder.uri}' has no result yet; see exemplar-ray status {folder.uri}")
        self._spec = ActivationsSpec.from_json(spec)
        self._files: dict[tuple[str, str], list[_File]] = {}
        with folder.open(INDEX) as file:
            for row in pq.read_table(file).to_pylist():
                key = row["layer"], row["pool"]
                of_shard = _File(*(row[name] for name in ("shard", "file", "first_row", "rows", "bytes", "sha256")))
                self._files.setdefault(key, []).append(of_shard)
        self.summary: dict[str, Any] = summary
        """How many images there are, and how many were skipped."""

    @property
    def uri(self) -> str:
        """Where the store is, as it was opened."""
        return self._folder.uri

    @property
    def network(self) -> NetworkSpec:
        """The network, its preprocessing, and the layers that are stored."""
        return self._spec.network

    @property
    def shards(self) -> list[Shard]:
        """The shards whose images these are, in the order of the rows."""
        return self.images.shards

    @property
    def subset(self) -> Subset | None:
        """Which part of the shards' images it is; None for all."""
        return self.images.subset

    @cached_property
    def images(self) -> PlannedImages:
        """The images, as they were planned."""
        return PlannedImages.from_json(self._folder.read_run())

    @property
    def layers(self) -> list[str]:
        """The names of the layers that are stored."""
        return [layer.name for layer in self.network.layers]

    @property
    def pools(self) -> tuple[str, ...]:
        """How their maps are pooled; `none`: whole maps."""
        return self._spec.pools

    @property
    def dtype(self) -> np.dtype:
        """What is stored of each activation."""
        return np.dtype(self._spec.dtype)

    @property
    def decode(self) -> str:
        """How images were decoded, see `preprocess.DECODERS`."""
        return self._spec.decode

    def __len__(self) -> int:
        return sum(file.rows for file in next(iter(self._files.values())))

    def __repr__(self) -> str:
        what = f"{', '.join(self.layers)} ({', '.join(self.pools)})"
        return f"<Store of {len(self):,} images: {what} of {self.network.title}>"

    @cached_property
    def rows(self) -> pa.Table:
        """What each row is of: `shard`, `row`, `image_path`, `label`, `synset_id`, `class_name`, in the order of
        `array`."""
        return pa.concat_tables([IDS.empty_table(), *self.ids_by_shard()])

    def array(self, layer: str | None = None, pool: str | None = None) -> np.ndarray:
        """Read the activations of all images.

        Args:
            layer, pool: may be left out where there is one.

        Returns:
            [images, channels], or of whole maps [images, channels, height, width]; of the store's type. Row i is of the
            image that `rows` says.

        Raises:
            UsageError: the store does not have it, or one of its files is not the one that was stored.
        """
        stored = self._one(layer, pool)
        # All rows at once: the pages of memory are touched only as they are filled.
        result = np.empty((len(self), *stored.shape), self.dtype)
        for file in self._files[stored.layer.name, stored.pool]:
            self._fill(result[file.first_row : file.first_row + file.rows], file)
        return result

    def batches(self, layer: str | None = None, pool: str | None = None) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield some rows after others, for stores that are larger than memory: what they are of, and their
        activations, as `rows` and `array` give them. No batch is of more than a shard, or of more than 32 MB."""
        stored = self._one(layer, pool)
        for file in self._files[stored.layer.name, stored.pool]:
            with self._folder.open(file.name) as opened:
                self._refuse_another(opened, file)
                yield from read_groups(opened, stored.shape, self.dtype)

    def ids_by_shard(self) -> Iterator[pa.Table]:
        """Yield what the rows of one shard after another are, of those that have any."""
        [files, *_] = self._files.values()
        yield from (self._read(file, IDS.names) for file in files if file.rows)

    def ids_of(self, shard: str) -> pa.Table:
        """Return what the rows of one shard are."""
        [files, *_] = self._files.values()
        return self._read(next(file for file in files if file.shard == shard), IDS.names)

    def files(self, layer: str | None = None, pool: str | None = None) -> list[str]:
        """Return the parquet files of a layer and pool, in the order of the rows: for Arrow, `datasets` or DuckDB."""
        stored = self._one(layer, pool)
        return [f"{self.uri.rstrip('/')}/{file.name}" for file in self._files[stored.layer.name, stored.pool]]

    def digest(self, layer: str | None = None, pool: str | None = None) -> str:
        """Return a SHA-256 (hex) of a layer's rows and activations: the same of stores that hold the same."""
        stored = self._one(layer, pool)
        files = self._files[stored.layer.name, stored.pool]
        return hashlib.sha256("".join(file.sha256 for file in files if file.rows).encode()).hexdigest()

    def moments(self, layer: str | None = None, pool: str | None = None, label: int | None = None) -> Moments:
        """Return count, mean and covariance of the activations that are finite numbers.

        Args:
            label: of the images of one class, computed from their rows in the order of the shards; None for all, which
                were computed while they were stored.

        Raises:
            UsageError: the store does not have it, or it is of whole maps, or of too many channels.
        """
        stored = self._one(layer, pool)
        key = stored.layer.name, stored.pool
        if key not in self._moments:
            raise UsageError(f"there are no moments of '{key[0]}' ({key[1]}): it has {stored.shape} numbers an image")
        if label is None:
            return self._moments[key]
        found = Moments.none(stored.shape[0])
        for rows, values in self.batches(*key):
            mine = values[pc.equal(rows["label"], label).fill_null(False).to_numpy()]
            found = found.merged(Moments.of(mine[np.isfinite(mine).all(axis=1)]))
        return found

    @cached_property
    def _moments(self) -> dict[tuple[str, str], Moments]:
        return from_parquet(self._folder.read(MOMENTS))

    def chosen(self, layer: str | None = None, pool: str | None = None) -> tuple[str, str]:
        """Return the layer and the pool that are meant where they may be left out.

        Raises:
            UsageError: the store does not have it, or has several.
        """
        stored = self._one(layer, pool)
        return stored.layer.name, stored.pool

    def shape_of(self, layer: str, pool: str) -> tuple[int, ...]:
        """Return the shape of one image's activations."""
        return self._one(layer, pool).shape

    def folder_of(self, layer: str) -> str:
        """Return what a layer's folder is called."""
        return next(one.folder for one in self._spec.stored if one.layer.name == layer)

    def _one(self, layer: str | None, pool: str | None) -> Stored:
        layer = _chosen("layer", layer, self.layers)
        pool = _chosen("pool", pool, self.pools)
        return next(one for one in self._spec.stored if (one.layer.name, one.pool) == (layer, pool))

    def _read(self, file: _File, columns: Sequence[str]) -> pa.Table:
        with self._folder.open(file.name) as opened:
            return pq.read_table(opened, columns=list(columns))

    def _fill(self, values: np.ndarray, file: _File) -> None:
        """Read a file's activations, which lie in one piece in each row group, into an array."""
        with self._folder.open(file.name) as opened:
            self._refuse_another(opened, file)
            if not read_values(opened, values):
                raise UsageError(_other_file(self.uri, file))

    def _refuse_another(self, opened: Any, file: _File) -> None:
        if opened.seek(0, io.SEEK_END) != file.bytes:
            raise UsageError(_other_file(self.uri, file))


def _other_file(store: str, file: _File) -> str:
    return f"'{store}': {file.name} is not the file that was stored; run activations again"


def _chosen(what: str, name: str | None, there: Sequence[str]) -> str:
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        raise UsageError(f"the store has several: give {what}, one of {', '.join(there)}")
    if name not in there:
        raise UsageError(f"the store has no {what} '{name}'; {near_matches(name, there)}")
    return name


def open_store(uri: str) -> Store:
    """Open a store of activations: a folder that `exemplar-ray activations` wrote, local or remote.

    Raises:
        UsageError: it is none, or it has no result yet.
    """
    return Store(RunFolder(str(uri)))
