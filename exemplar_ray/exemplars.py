"""The answer on disk: `exemplars.parquet`, and `images.parquet` beside it. Knows no torch."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.geometry import Box, Framing, field_box
from exemplar_ray.parts import layers_and_statistics
from exemplar_ray.run_folder import Plan
from exemplar_ray.samples import TOP
from exemplar_ray.selection import Selected
from exemplar_ray.spec import Layer

ROWS_PER_GROUP = 100


class ImageSpool:
    """Gathered images, kept on the local disk and read back by memory map.

    The images of a run's exemplars may be more than fits in memory; only those of one row
    group are taken in at a time.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="exemplar_ray-images-")
        self._tables: list[pa.Table] = []
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._known: dict[tuple[int, int], dict[str, Any]] = {}

    def __enter__(self) -> ImageSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.clear()
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, shard: int, images: pa.Table) -> None:
        """Keep some of a shard's images (`IMAGES_SCHEMA`)."""
        path = str(Path(self._folder.name) / f"{len(self._tables)}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, images.schema) as writer:
            writer.write_table(images)
        self._tables.append(pa.ipc.open_file(pa.memory_map(path)).read_all())
        for place, image in enumerate(images.drop_columns(["bytes", "hash"]).to_pylist()):
            self._places[shard, image["row"]] = len(self._tables) - 1, place
            self._known[shard, image["row"]] = image

    def known(self, shard: int, row: int) -> dict[str, Any]:
        """Return what is known of one image: its row of `IMAGES_SCHEMA` without bytes and hash."""
        return self._known[shard, row]

    def image(self, shard: int, row: int) -> dict[str, Any]:
        """Return one image as Hugging Face's features have it: {"bytes", "path"}."""
        table, place = self._places[shard, row]
        return {"bytes": self._tables[table]["bytes"][place].as_py(), "path": self._known[shard, row]["path"]}


def write_exemplars(
    path: str, plan: Plan, selected: Selected, percentiles: np.ndarray, images: ImageSpool, partial: str | None
) -> None:
    """Write the table, in row groups of `ROWS_PER_GROUP` images.

    Equal arguments give equal bytes.

    Args:
        path: a local file.
        percentiles: float64 [exemplars], share of scored images below, 0..100.
        partial: None, or what the result leaves out, for the file's metadata.
    """
    schema = exemplars_schema(plan, partial)
    dictionaries = ["layer", "statistic", "sample", "shard", "class_name"]
    with pq.ParquetWriter(path, schema, compression=_compression(schema), use_dictionary=dictionaries) as writer:
        # Only the strongest carry their images.
        step = ROWS_PER_GROUP * len(plan.spec.shown_samples)
        pieces = [range(s, min(s + step, len(selected.ranks))) for s in range(0, len(selected.ranks), step)]
        # One row group is put together while the one before is written.
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[pa.Table]] = deque()
            for rows in pieces:
                waiting.append(pool.submit(_row_group, schema, plan, selected, percentiles, rows, images))
                if len(waiting) > 1:
                    writer.write_table(waiting.popleft().result())
            for group in waiting:
                writer.write_table(group.result())


def write_images(path: str, plan: Plan, selected: Selected, images: ImageSpool) -> None:
    """Write the images of all samples but `top`, each once: `shard`, `row`, `image`, sorted by these.

    They would stand in `exemplars.parquet` many times over: samples of different channels share images.

    Args:
        path: a local file.
    """
    others = np.array([sample != TOP for sample in selected.samples], bool)
    which = np.unique(np.stack([selected.scores.shard, selected.scores.row], axis=1)[others], axis=0).tolist()
    schema = images_schema()
    with pq.ParquetWriter(path, schema, compression=_compression(schema), use_dictionary=["shard"]) as writer:
        for start in range(0, len(which), ROWS_PER_GROUP):
            group = which[start : start + ROWS_PER_GROUP]
            columns = {
                "shard": [plan.shards[shard].name for shard, _ in group],
                "row": [row for _, row in group],
                "image": [images.image(shard, row) for shard, row in group],
            }
            writer.write_table(pa.table(columns, schema=schema))


def images_schema() -> pa.Schema:
    """Return the schema of `images.parquet`, with Hugging Face features."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("shard", pa.string()), ("row", pa.int64()), ("image", image)]
    features = {name: _hugging_face_feature(kind) for name, kind in fields}
    features["image"] = {"_type": "Image"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def exemplars_schema(plan: Plan, partial: str | None) -> pa.Schema:
    """Return the table's schema, with Hugging Face features and the run's identity as metadata."""
    names = plan.class_labels.all_names()
    fields = [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("channel", pa.int32()),
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("image_path", pa.string()),
        ("label", pa.int64()),
        ("synset_id", pa.string()),
        ("class_name", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("percentile", pa.float64()),
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_map", pa.list_(pa.float16())),
        ("map_height", pa.int32()),
        ("map_width", pa.int32()),
        ("view_box", pa.list_(pa.float32(), 4)),
        ("field_box", pa.list_(pa.float32(), 4)),
        ("sample", pa.string()),
        ("duplicate_of", pa.int32()),
        ("unit_box", pa.list_(pa.float32(), 4)),
    ]
    features = {name: _hugging_face_feature(kind) for name, kind in fields}
    features["image"] = {"_type": "Image"}
    if names:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    run = {"fingerprint": plan.fingerprint, "identity": plan.identity(), "trained": plan.spec.trained}
    run["partial"] = partial
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "exemplar_ray": json.dumps(run, sort_keys=True),
    }
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=metadata)


def _hugging_face_feature(kind: pa.DataType) -> dict[str, Any]:
    """Return how `datasets` writes a column's type."""
    if pa.types.is_list(kind):
        return {"feature": _hugging_face_feature(kind.value_type), "_type": "List"}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _hugging_face_feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    names = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Return {parquet column: codec}: images are compressed already."""
    compression = {"image.bytes": "none", "image.path": "zstd"}
    for field in schema:
        if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
            compression[f"{field.name}.list.element"] = "zstd"
        elif field.name != "image":
            compression[field.name] = "zstd"
    return compression


def _row_group(
    schema: pa.Schema, plan: Plan, selected: Selected, percentiles: np.ndarray, rows: range, images: ImageSpool
) -> pa.Table:
    inside = slice(rows.start, rows.stop)
    scores = selected.scores.take(np.array(rows))
    pairs = layers_and_statistics(plan.spec)
    series = [pairs[s] for s in scores.series.tolist()]
    keys = list(zip(scores.shard.tolist(), scores.row.tolist(), strict=True))
    found = [images.known(*key) for key in keys]
    places = selected.places.slice(rows.start, len(rows))
    peaks = list(zip(places["peak_y"].to_pylist(), places["peak_x"].to_pylist(), strict=True))
    units = [_unit(layer, statistic, peak) for (layer, statistic), peak in zip(series, peaks, strict=True)]
    framings = [Framing.of(image["width"], image["height"], plan.spec.preprocess) for image in found]
    map_sizes = [layer.map_size or (None, None) for layer, _ in series]
    labels = plan.class_labels

    def boxes(units: list[tuple[int | None, int | None]]) -> list[Box | None]:
        return [field_box(layer.field, u, f) for (layer, _), u, f in zip(series, units, framings, strict=True)]

    columns = {
        "layer": [layer.name for layer, _ in series],
        "statistic": [statistic for _, statistic in series],
        "channel": scores.channel,
        "rank": selected.ranks[inside],
        "activation": scores.activation,
        "shard": [plan.shards[s].name for s in scores.shard],
        "row": scores.row,
        "image_path": [image["path"] for image in found],
        "label": [image["label"] for image in found],
        "synset_id": [labels.synset_id(image["label"], image["path"]) for image in found],
        "class_name": [labels.class_name(image["label"]) for image in found],
        "image": [
            images.image(*key) if sample == TOP else None
            for key, sample in zip(keys, selected.samples[inside], strict=True)
        ],
        "percentile": percentiles[inside],
        "peak_y": places["peak_y"],
        "peak_x": places["peak_x"],
        "activation_map": places["activation_map"],
        "map_height": [height for height, _ in map_sizes],
        "map_width": [width for _, width in map_sizes],
        "view_box": [framing.view_box for framing in framings],
        "field_box": boxes(peaks),
        "sample": selected.samples[inside],
        "duplicate_of": selected.duplicate_of[inside],
        "unit_box": boxes(units),
    }
    return pa.table(columns, schema=schema)


def _unit(layer: Layer, statistic: str, peak: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Return row and column of the unit whose activation a statistic is; None where it is of many."""
    if statistic == "max":
        return peak
    if statistic == "center" and layer.map_size:
        return layer.map_size[0] // 2, layer.map_size[1] // 2
    return None, None
