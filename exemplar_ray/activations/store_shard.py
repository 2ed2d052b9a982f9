"""One shard of images -> one part: a file for each layer and pool, and their moments. Knows nothing of Ray."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from exemplar_ray.activations.asked import StoreSettings
from exemplar_ray.activations.job_names import MOMENTS, WHOLE, folder_of
from exemplar_ray.activations.moments_table import has_moments, to_parquet
from exemplar_ray.activations.rows_table import RowsWriter
from exemplar_ray.activations.spec import ActivationsSpec, Stored
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.shard import ImageRow, Shard
from exemplar_ray.errors import ShardError
from exemplar_ray.moments import Moments
from exemplar_ray.network.shard_images import ReadOptions, RowsRead, ShardImages
from exemplar_ray.network.trunk import Trunk


@dataclass(frozen=True)
class StoredShard:
    """What came out of one shard."""

    files: Mapping[str, bytes | Path]
    """Its part, see `executor.job.Made`."""
    read: RowsRead
    unusual: list[dict[str, Any]] = field(default_factory=list)
    """[{"layer", "pool", "not_finite", "overflowed"}]: how many images gave NaN or infinity, and how many activations
    float16 could not hold, where there are any."""


def store_shard(trunk: Trunk, settings: StoreSettings, shard: Shard) -> StoredShard:
    """Store the activations of every image of a shard, in the order of its rows.

    Memory holds a row group of each layer and pool, whatever the shard has.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up, the file is not the
            listed one, or float16 cannot hold an activation and that is not allowed.
    """
    spec = settings.spec
    reading = ReadOptions(settings.batch_size, settings.threads, settings.max_skipped, spec.decode)
    with _sheets(spec) as sheets, ShardImages(spec.network, shard, reading, trunk.device) as images:
        ids = _Ids(shard, settings)
        for batch, labels in images.batches():
            given = _activations(trunk, spec, batch.crops, labels)
            of_rows = [ids.of(image) for image in batch.images]
            for sheet in sheets:
                sheet.add(of_rows, given[sheet.key])
        read = images.rows_read()
        files: dict[str, bytes | Path] = {}
        for sheet in sheets:
            sheet.refuse_overflow(shard, settings.allow_overflow)
            files[f"{folder_of(sheet.stored.folder, sheet.stored.pool)}/parquet"] = sheet.close()
    files[MOMENTS] = to_parquet({sheet.key: sheet.moments for sheet in sheets if sheet.moments is not None})
    return StoredShard(files, read, [unusual for sheet in sheets if (unusual := sheet.unusual())])


def _activations(
    trunk: Trunk, spec: ActivationsSpec, crops: Tensor, labels: Tensor | None
) -> dict[tuple[str, str], Tensor]:
    """Return {(layer, pool): float32 [images, ...]} of a batch, with what pads it."""
    if WHOLE not in spec.pools:
        return trunk(crops, labels).activations
    pooled, maps = trunk.with_maps(crops, labels)
    return {**pooled.activations, **{(name, WHOLE): of_layer for name, of_layer in maps.items()}}


class _Ids:
    """What a store's row says of its image."""

    def __init__(self, shard: Shard, settings: StoreSettings) -> None:
        self._shard, self._labels = shard, settings.class_labels

    def of(self, image: ImageRow) -> dict[str, Any]:
        path = image.path if image.path is not None else self._paths[image.row]
        return {
            "shard": self._shard.name,
            "row": image.row,
            "image_path": path,
            "label": image.label,
            "synset_id": self._labels.synset_id(image.label, path),
            "class_name": self._labels.class_name(image.label),
        }

    @cached_property
    def _paths(self) -> list[str | None]:
        """The paths of all rows, where a reader of images does not give them."""
        with open_shard(self._shard) as reader:
            return [path for paths, _ in reader.paths_and_labels() for path in paths]


class _Sheet:
    """The rows of one layer and pool, on their way into a local file."""

    def __init__(self, stored: Stored, dtype: str, path: Path) -> None:
        self.stored = stored
        self.key = (stored.layer.name, stored.pool)
        self.moments = Moments.none(stored.shape[0]) if has_moments(stored.shape) else None
        self._path, self._dtype = path, dtype
        self._not_finite = self._overflowed = 0
        self._writer = RowsWriter(path, stored.shape, dtype, self._seen)

    def add(self, ids: list[dict[str, Any]], given: Tensor) -> None:
        """Take in a batch, of whose rows the first are these."""
        values = given[: len(ids)].cpu().numpy()
        finite = np.isfinite(values)
        with np.errstate(over="ignore"):
            narrowed = values.astype(self._dtype)
        if not finite.all():
            self._not_finite += int((~finite.reshape(len(values), -1).all(axis=1)).sum())
        if narrowed.dtype != values.dtype:
            self._overflowed += int((finite & ~np.isfinite(narrowed)).sum())
        self._writer.add(ids, narrowed)

    def refuse_overflow(self, shard: Shard, allowed: bool) -> None:
        """Refuse infinity that float16 has made of a number."""
        if self._overflowed and not allowed:
            layer, pool = self.key
            raise ShardError(
                f"{shard.name}: {self._overflowed} activations of '{layer}' ({pool}) are beyond {self._dtype}, whose "
                "largest number is 65,504; store float32 with another --out, or infinity with --allow-overflow"
            )

    def unusual(self) -> dict[str, Any] | None:
        """Return what the record says of activations that are no numbers; None if all are."""
        if not self._not_finite and not self._overflowed:
            return None
        layer, pool = self.key
        return {"layer": layer, "pool": pool, "not_finite": self._not_finite, "overflowed": self._overflowed}

    def close(self) -> Path:
        """End the file."""
        self._writer.close()
        return self._path

    def _seen(self, values: np.ndarray) -> None:
        if self.moments is not None:
            self.moments = self.moments.merged(Moments.of(values[np.isfinite(values).all(axis=1)]))

    def __enter__(self) -> _Sheet:
        self._writer.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._writer.__exit__()
        if failure[0] is not None:
            self._path.unlink(missing_ok=True)


@contextmanager
def _sheets(spec: ActivationsSpec) -> Iterator[list[_Sheet]]:
    """Open a local file for each layer and pool; they are gone if what follows fails."""
    begins = os.path.join(tempfile.gettempdir(), f"exemplar_ray-{uuid.uuid4().hex}")
    with ExitStack() as stack:
        yield [
            stack.enter_context(_Sheet(stored, spec.dtype, Path(f"{begins}-{number}.parquet")))
            for number, stored in enumerate(spec.stored)
        ]
