"""What comes of a comparison, as tables: their schemas, and how parts hold them. `_a` and `_b` are of A and of B."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.activations.rows_table import IDS
from exemplar_ray.compare.spec import NETWORKS, SETS

LAYERS, CHANNELS, CLASSES, IMAGES, EXEMPLARS = "layers", "channels", "classes", "images", "exemplars"
PICTURES, THUMBNAILS = "pictures", "thumbnails"
"""In parts only: pictures of the images that the pages show, and the small ones of a map."""

_STRINGS = pa.list_(pa.string())


def _fields(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, kind) for name in names]


_OF_LAYER = _fields(pa.string(), "layer", "other_layer", "pool")

_EXEMPLARS = pa.schema(
    [
        *_OF_LAYER,
        ("set", pa.string()),
        ("channel", pa.int32()),
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        *IDS,
    ]
)
"""The strongest images of each channel, in A and in B; none of a channel that is the same for all images."""

SCHEMAS: dict[str, dict[str, pa.Schema]] = {
    SETS: {
        LAYERS: pa.schema(
            [
                *_fields(pa.string(), "layer", "pool"),
                *_fields(pa.int64(), "channels", "images_a", "images_b", "left_out_a", "left_out_b"),
                *_fields(pa.int64(), "shards_a", "shards_b"),
                *_fields(pa.float64(), "frechet", "frechet_low", "frechet_high", "frechet_at_infinity", "residual"),
                *_fields(pa.int64(), "neighbours", "points_a", "points_b"),
                *_fields(pa.float64(), "precision", "recall", "density", "coverage"),
                *_fields(pa.float64(), "clipped_density", "clipped_coverage", "classes_covered", "fidelity"),
                *_fields(pa.float64(), "ks_median", "ks_most"),
                ("map", pa.string()),
                ("warnings", _STRINGS),
            ]
        ),
        CHANNELS: pa.schema(
            [
                *_fields(pa.string(), "layer", "pool"),
                ("channel", pa.int32()),
                *_fields(pa.float64(), "ks", "ks_error", "ks_low", "ks_high"),
                *_fields(pa.float64(), "wasserstein", "wasserstein_error", "wasserstein_low", "wasserstein_high"),
                *_fields(pa.float64(), "mean_a", "mean_b"),
                ("constant", pa.bool_()),
            ]
        ),
        CLASSES: pa.schema(
            [
                *_fields(pa.string(), "layer", "pool"),
                ("label", pa.int64()),
                *_fields(pa.string(), "synset_id", "class_name"),
                *_fields(pa.int64(), "images_a", "images_b"),
                *_fields(pa.float64(), "centroid", "frechet", "coverage", "fidelity", "right"),
                ("too_few", pa.string()),
            ]
        ),
        IMAGES: pa.schema(
            [
                *_fields(pa.string(), "layer", "pool", "set"),
                *IDS,
                *_fields(pa.float64(), "radius", "nearest"),
                ("nearest_shard", pa.string()),
                ("nearest_row", pa.int64()),
                *_fields(pa.bool_(), "among_other", "covered"),
                ("balls", pa.int64()),
                ("share_of_class", pa.float64()),
                ("voted", pa.int64()),
                *_fields(pa.float64(), "x", "y"),
            ]
        ),
        EXEMPLARS: _EXEMPLARS,
    },
    NETWORKS: {
        LAYERS: pa.schema(
            [
                *_OF_LAYER,
                *_fields(pa.int64(), "images", "left_out", "channels", "other_channels"),
                *_fields(pa.float64(), "cka", "debiased", "correlation_median", "mutual", "in_common_mean"),
                ("warnings", _STRINGS),
            ]
        ),
        CHANNELS: pa.schema(
            [
                *_OF_LAYER,
                ("channel", pa.int32()),
                ("match", pa.int32()),
                ("correlation", pa.float64()),
                ("mutual", pa.bool_()),
                *_fields(pa.float64(), "in_common", "in_common_match"),
            ]
        ),
        EXEMPLARS: _EXEMPLARS,
    },
}
"""{kind: {table: its schema}}"""

PICTURE_SCHEMA = pa.schema([("set", pa.string()), ("shard", pa.string()), ("row", pa.int64()), ("jpeg", pa.binary())])

Tables = Mapping[str, pa.Table]


def of_columns(columns: Mapping[str, Any], schema: pa.Schema, constant: Mapping[str, Any] | None = None) -> pa.Table:
    """Put columns into a table; NaN becomes null, and what is missing is null.

    Args:
        constant: values that are the same in all rows.
    """
    rows = len(next(iter(columns.values())))
    of = {**columns, **{name: [value] * rows for name, value in (constant or {}).items()}}
    arrays = [
        pa.array(of[field.name], field.type, from_pandas=True) if field.name in of else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def to_files(tables: Tables) -> dict[str, bytes]:
    """Return {how a part's file's name ends: its content}; equal tables give equal bytes."""
    files = {}
    for name, table in tables.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        files[f"{name}.parquet"] = sink.getvalue()
    return files


def from_files(files: Mapping[str, bytes], name: str) -> pa.Table | None:
    """Read a table of a part back; None where the part has none of that name."""
    content = files.get(f"{name}.parquet")
    return None if content is None else pq.read_table(pa.BufferReader(content))


def concatenated(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Put parts' tables together."""
    return pa.concat_tables([schema.empty_table(), *tables])
