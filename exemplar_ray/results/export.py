"""A store in the forms that other programs read: numpy's arrays, and the batches that extraction scripts write."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.activations.export_names import NPY, NPZ
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.errors import UsageError
from exemplar_ray.results.store import Store

ROWS = "rows.parquet"
_OF_STORES = (NPZ, NPY)
_USUAL_ENDING = ".JPEG"


def export(
    store: Store,
    folder: str,
    form: str,
    layers: Sequence[str] = (),
    pool: str | None = None,
    batch_size: int = 64,
    images: bool = True,
) -> int:
    """Write a store's activations into a new local folder.

    Args:
        form: npz or npy, see `export_names`.
        layers: which; all if there are none.
        pool: which; may be left out where the store has one.
        batch_size: images a batch, of `npz`.
        images: whether `npz` has the images, too: their shards must be where they were.

    Returns:
        How many images these are.

    Raises:
        UsageError: the folder is not new, or the store does not have it.
        ShardError, OSError: the images' shards cannot be read.
    """
    target = new_folder(folder)
    if form not in _OF_STORES:
        raise UsageError(f"a format is one of {', '.join(_OF_STORES)}, not '{form}'")
    if batch_size < 1:
        raise UsageError(f"batch_size is a whole number from 1, not {batch_size}")
    chosen = [store.chosen(layer, pool) for layer in (layers or store.layers)]
    target.mkdir(parents=True, exist_ok=True)
    if form == NPY:
        return _write_arrays(store, target, chosen)
    return _write_batches(store, target, chosen, batch_size, images)


def new_folder(folder: str) -> Path:
    """Return the path of a local folder that is yet to be made, or empty.

    Raises:
        UsageError: it is none.
    """
    target = Path(folder)
    if "://" in folder or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UsageError(f"'{folder}' is no new or empty local folder; choose another")
    return target


def _write_arrays(store: Store, target: Path, chosen: Sequence[tuple[str, str]]) -> int:
    """Write an array a layer, without holding it in memory."""
    for layer, pool in chosen:
        path = target / f"{store.folder_of(layer)}.npy"
        shape = (len(store), *store.shape_of(layer, pool))
        array = np.lib.format.open_memmap(path, mode="w+", dtype=store.dtype, shape=shape)
        first = 0
        for ids, values in store.batches(layer, pool):
            array[first : first + len(ids)] = values
            first += len(ids)
        array.flush()
    pq.write_table(store.rows, target / ROWS)
    return len(store)


def _write_batches(store: Store, target: Path, chosen: Sequence[tuple[str, str]], batch_size: int, images: bool) -> int:
    """Write batches, each layer's activations as [images, channels x height x width]."""
    layers = [layer for layer, _ in chosen]
    names = _images_into(store, target) if images else None
    several = zip(*(_in_batches(store.batches(*of), batch_size) for of in chosen), strict=True)
    number = written = 0
    for number, of_layers in enumerate(several, start=1):
        ids = of_layers[0][0].to_pylist()
        name = f"batch_{number - 1:06d}"
        arrays = {layer: values.reshape(len(ids), -1) for layer, (_, values) in zip(layers, of_layers, strict=True)}
        np.savez_compressed(target / f"{name}.npz", **arrays)
        samples = [_sample(index, row, next(names) if names else None) for index, row in enumerate(ids)]
        batch = {"batch_size": len(ids), "layers": layers, "samples": samples}
        (target / f"{name}.json").write_text(json.dumps(batch, indent=1))
        written += len(ids)
    info = {
        "images": written,
        "batches": number,
        "batch_size": batch_size,
        "layers": {layer: list(store.shape_of(layer, pool)) for layer, pool in chosen},
        "pool": chosen[0][1],
        "dtype": store.dtype.name,
        "model": store.network.model_title,
        "weights": store.network.weights_title,
        "trained": store.network.trained,
        "preprocess": store.network.preprocess.to_json(),
    }
    (target / "dataset_info.json").write_text(json.dumps(info, indent=1))
    return written


def _sample(index: int, row: dict[str, Any], image: str | None) -> dict[str, Any]:
    return {
        "batch_index": index,
        "class_id": row["label"],
        "synset_id": row["synset_id"],
        "class_name": row["class_name"],
        "original_path": row["image_path"],
        "shard": row["shard"],
        "row": row["row"],
        **({} if image is None else {"image": image}),
    }


def _in_batches(batches: Iterator[tuple[pa.Table, np.ndarray]], size: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Divide rows anew, so many at a time."""
    tables: list[pa.Table] = []
    values: list[np.ndarray] = []
    for table, few in batches:
        first = 0
        while first < len(table):
            room = size - sum(map(len, tables))
            tables.append(table.slice(first, room))
            values.append(few[first : first + room])
            first += room
            if sum(map(len, tables)) == size:
                yield pa.concat_tables(tables), np.concatenate(values)
                tables, values = [], []
    if tables:
        yield pa.concat_tables(tables), np.concatenate(values)


def _images_into(store: Store, target: Path) -> Iterator[str]:
    """Write the images beside the batches, in the order of the rows; yield the name of each."""
    (target / "images").mkdir()
    number = 0
    shards = {shard.name: shard for shard in store.shards}
    for ids in store.ids_by_shard():
        rows = ids["row"].to_pylist()
        with open_shard(shards[ids["shard"][0].as_py()]) as reader:
            for image in reader.select(rows):
                ending = posixpath.splitext(image.path or "")[1] or _USUAL_ENDING
                name = f"images/{number:08d}{ending}"
                (target / name).write_bytes(image.data or b"")
                number += 1
                yield name
