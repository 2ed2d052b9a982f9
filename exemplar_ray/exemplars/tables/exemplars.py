"""The answer on disk: `exemplars.parquet`, and `images.parquet` beside it. Knows no torch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.rerank.selected import Selected
from exemplar_ray.exemplars.samples import TOP
from exemplar_ray.exemplars.spec import Readout
from exemplar_ray.network.statistics import STATISTICS
from exemplar_ray.network.unit_boxes import field_box
from exemplar_ray.prefetch import map_ahead

ROWS_PER_GROUP = 100


class ImageSpool:
    """Gathered images, kept on the local disk and read back by memory map.

    The images of a run's exemplars may be more than fits in memory; only those of one row
    group are taken in at a time.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="exemplar_ray-images-")
        self._tables: list[pa.Table] = []
        self._at: dict[tuple[int, int], tuple[int, int]] = {}
        self._described: dict[tuple[int, int], dict[str, Any]] = {}

    def __enter__(self) -> ImageSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.clear()
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, shard: int, images: pa.Table) -> None:
        """Keep some of a shard's images (`IMAGES_SCHEMA`)."""
        path = str(Path(self._folder.name) / f"{len(self._tables)}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, images.schema) as writer:
            writer.write_table(images)
        self._tables.append(pa.ipc.open_file(pa.memory_map(path)).read_all())
        for index, image in enumerate(images.drop_columns(["bytes", "hash"]).to_pylist()):
            self._at[shard, image["row"]] = len(self._tables) - 1, index
            self._described[shard, image["row"]] = image

    def described(self, shard: int, row: int) -> dict[str, Any]:
        """Return what is known of one image: its row of `IMAGES_SCHEMA` without bytes and hash."""
        return self._described[shard, row]

    def image(self, shard: int, row: int) -> dict[str, Any]:
        """Return one image as Hugging Face's features have it: {"bytes", "path"}."""
        table, index = self._at[shard, row]
        return {"bytes": self._tables[table]["bytes"][index].as_py(), "path": self._described[shard, row]["path"]}


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
        for group in map_ahead(
            lambda rows: _row_group(schema, plan, selected, percentiles, rows, images), pieces, threads=1, ahead=1
        ):
            writer.write_table(group)


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
    run = {"fingerprint": plan.fingerprint, "identity": plan.identity(), "trained": plan.spec.network.trained}
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
    of_run = plan.spec.readouts
    readouts = [of_run[number] for number in scores.readout.tolist()]
    keys = list(zip(scores.shard.tolist(), scores.row.tolist(), strict=True))
    described = [images.described(*key) for key in keys]
    maps = selected.maps.slice(rows.start, len(rows))
    peaks = list(zip(maps["peak_y"].to_pylist(), maps["peak_x"].to_pylist(), strict=True))
    units = [_unit(readout, peak) for readout, peak in zip(readouts, peaks, strict=True)]
    framings = [Framing.of(image["width"], image["height"], plan.spec.network.preprocess) for image in described]
    map_sizes = [layer.map_size or (None, None) for layer, _ in readouts]
    labels = plan.class_labels

    def boxes(units: list[tuple[int | None, int | None]]) -> list[Box | None]:
        return [field_box(layer.field, u, f) for (layer, _), u, f in zip(readouts, units, framings, strict=True)]

    columns = {
        "layer": [layer.name for layer, _ in readouts],
        "statistic": [statistic for _, statistic in readouts],
        "channel": scores.channel,
        "rank": selected.ranks[inside],
        "activation": scores.activation,
        "shard": [plan.shards[s].name for s in scores.shard],
        "row": scores.row,
        "image_path": [image["path"] for image in described],
        "label": [image["label"] for image in described],
        "synset_id": [labels.synset_id(image["label"], image["path"]) for image in described],
        "class_name": [labels.class_name(image["label"]) for image in described],
        "image": [
            images.image(*key) if sample == TOP else None
            for key, sample in zip(keys, selected.samples[inside], strict=True)
        ],
        "percentile": percentiles[inside],
        "peak_y": maps["peak_y"],
        "peak_x": maps["peak_x"],
        "activation_map": maps["activation_map"],
        "map_height": [height for height, _ in map_sizes],
        "map_width": [width for _, width in map_sizes],
        "view_box": [framing.view_box for framing in framings],
        "field_box": boxes(peaks),
        "sample": selected.samples[inside],
        "duplicate_of": selected.duplicate_of[inside],
        "unit_box": boxes(units),
    }
    return pa.table(columns, schema=schema)


def _unit(readout: Readout, peak: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Return row and column of the unit whose activation a statistic is; None where it is of many."""
    unit, (y, x) = STATISTICS[readout.statistic].unit, peak
    if unit is None or readout.layer.map_size is None or y is None or x is None:
        return None, None
    return unit(readout.layer.map_size, (y, x))
