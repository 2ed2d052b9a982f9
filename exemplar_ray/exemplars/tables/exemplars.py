"""The answer on disk: `exemplars.parquet`, and `images.parquet` beside it. Knows no torch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.data.imagenet_names import name_of_synset
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.rerank.selected import Selected
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.exemplars.spec import Readout
from exemplar_ray.exemplars.tables.image_spool import ImageSpool
from exemplar_ray.exemplars.tables.image_writer import IMAGE, image_column, image_writer, with_images_once
from exemplar_ray.exemplars.tables.row_groups import row_groups
from exemplar_ray.network.statistics import STATISTICS
from exemplar_ray.network.unit_boxes import field_box

ROWS_PER_GROUP = 100


def write_exemplars(
    path: str, plan: Plan, selected: Selected, percentiles: np.ndarray, images: ImageSpool, partial: str | None
) -> None:
    """Write the table, in row groups of `ROWS_PER_GROUP` images, or more where images repeat. An image's bytes stand
    once in each.

    Equal arguments give equal bytes.

    Args:
        path: a local file.
        percentiles: float64 [exemplars], share of scored images below, 0..100.
        partial: None, or what the result leaves out, for the file's metadata.
    """
    schema = exemplars_schema(plan, partial)
    groups = _groups(plan, selected, images)
    shown = ["layer", "statistic", "sample", "shard", "class_name"]
    with image_writer(path, schema, _compression(schema), shown) as writer:
        for rows in groups:
            writer(_row_group(schema, plan, selected, percentiles, rows, images))


def _groups(plan: Plan, selected: Selected, images: ImageSpool) -> list[range]:
    """Return the rows of each row group."""
    keys = list(zip(selected.scores.shard.tolist(), selected.scores.row.tolist(), strict=True))
    # Only the strongest carry their images.
    shown = [key if sample == TOP else None for key, sample in zip(keys, selected.samples, strict=True)]
    content = np.array([-1 if key is None else images.content(*key) for key in shown], np.int64)
    sizes = np.array([0 if key is None else images.size(*key) for key in shown], np.int64)
    map_bytes = images.map_bytes(selected.maps["map_number"].to_pylist()) if keys else sizes
    return row_groups(content, sizes, map_bytes, ROWS_PER_GROUP * len(plan.spec.shown_samples))


def write_images(path: str, plan: Plan, selected: Selected, images: ImageSpool) -> None:
    """Write the images of all samples but `top`, each once: `shard`, `row`, `image`, sorted by these.

    They would stand in `exemplars.parquet` many times over: samples of different channels share images.

    Args:
        path: a local file.
    """
    others = np.array([sample != TOP for sample in selected.samples], bool)
    which = np.unique(np.stack([selected.scores.shard, selected.scores.row], axis=1)[others], axis=0).tolist()
    schema = images_schema()
    sizes = np.array([images.size(*key) for key in which], np.int64)
    groups = row_groups(np.arange(len(which)), sizes, np.zeros_like(sizes), ROWS_PER_GROUP)
    with pq.ParquetWriter(path, schema, compression=_compression(schema), use_dictionary=["shard"]) as writer:
        for rows in groups:
            group = which[rows.start : rows.stop]
            columns = {
                "shard": [plan.shards[shard].name for shard, _ in group],
                "row": [row for _, row in group],
                "image": _images([(shard, row) for shard, row in group], images),
            }
            writer.write_table(pa.table(columns, schema=schema))


def _images(keys: list[tuple[int, int]], images: ImageSpool) -> pa.StructArray:
    content = images.contents([images.content(*key) for key in keys]).cast(pa.binary())
    return pa.StructArray.from_arrays([content, pa.array(images.paths(keys), pa.string())], fields=list(IMAGE))


def images_schema() -> pa.Schema:
    """Return the schema of `images.parquet`, with Hugging Face features."""
    fields = [("shard", pa.string()), ("row", pa.int64()), ("image", IMAGE)]
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
        ("image", IMAGE),
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
        ("synset_name", pa.string()),
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
    synset_ids = [labels.synset_id(image["label"], image["path"]) for image in described]

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
        "synset_id": synset_ids,
        "class_name": [labels.class_name(image["label"]) for image in described],
        "image": image_column(
            [
                images.content(*key) if sample == TOP else None
                for key, sample in zip(keys, selected.samples[inside], strict=True)
            ],
            images.paths(keys),
            images.contents,
        ),
        "percentile": percentiles[inside],
        "peak_y": maps["peak_y"],
        "peak_x": maps["peak_x"],
        "activation_map": pa.array(images.maps(maps["map_number"].to_pylist()), schema.field("activation_map").type),
        "map_height": [height for height, _ in map_sizes],
        "map_width": [width for _, width in map_sizes],
        "view_box": [framing.view_box for framing in framings],
        "field_box": boxes(peaks),
        "sample": selected.samples[inside],
        "duplicate_of": selected.duplicate_of[inside],
        "unit_box": boxes(units),
        "synset_name": list(map(name_of_synset, synset_ids)),
    }
    return pa.table(columns, schema=with_images_once(schema))


def _unit(readout: Readout, peak: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Return row and column of the unit whose activation a statistic is; None where it is of many."""
    unit, (y, x) = STATISTICS[readout.statistic].unit, peak
    if unit is None or readout.layer.map_size is None or y is None or x is None:
        return None, None
    return unit(readout.layer.map_size, (y, x))
