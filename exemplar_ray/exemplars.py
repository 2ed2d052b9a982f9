"""The answer: rank the recomputed candidates, write `exemplars.parquet`. Knows no torch."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.geometry import Framing, field_box
from exemplar_ray.parts import layers_and_statistics
from exemplar_ray.run_folder import Plan
from exemplar_ray.topk import Scores, rank

ROWS_PER_GROUP = 100

# What gather hands over, image by image and candidate by candidate.
IMAGES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("path", pa.string()),
        ("bytes", pa.large_binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)

PLACES_SCHEMA = pa.schema(
    [
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_map", pa.list_(pa.float16())),
    ]
)


class ImageSpool:
    """Gathered images, kept on the local disk and read back by memory map.

    The images of a run's exemplars may be more than fits in memory; only those of one row
    group are taken in at a time.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="exemplar_ray-images-")
        self._tables: dict[int, pa.Table] = {}
        self._places: dict[int, dict[int, int]] = {}

    def __enter__(self) -> ImageSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.clear()
        self._folder.cleanup()

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def add(self, shard: int, images: pa.Table) -> None:
        """Keep one shard's images (`IMAGES_SCHEMA`)."""
        path = str(Path(self._folder.name) / f"{shard}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, images.schema) as writer:
            writer.write_table(images)
        self._tables[shard] = pa.ipc.open_file(pa.memory_map(path)).read_all()
        self._places[shard] = {row: place for place, row in enumerate(images["row"].to_pylist())}

    def image(self, shard: int, row: int) -> dict[str, Any]:
        """Return one image's row of `IMAGES_SCHEMA`."""
        return self._tables[shard].slice(self._places[shard][row], 1).to_pylist()[0]


@dataclass(frozen=True)
class Ranking:
    """The top K under the recomputed activations, and whether they are beyond doubt."""

    order: np.ndarray
    """int64: where the exemplars stand among the candidates, by (series, channel, rank)."""
    ranks: np.ndarray
    """int32, from 1; as long as `order`."""
    largest_error: float
    """Largest difference between a scanned and a recomputed activation."""
    unsettled: list[tuple[int, int]]
    """(series, channel) whose K-th exemplar is not clear of the images that were dropped."""


def rank_exactly(scanned: Scores, exact: Scores, top_k: int, kept: int) -> Ranking:
    """Rank candidates by their recomputed activations.

    A channel is settled if no image outside its candidates can belong to its top K: there
    are none outside, or the best of them (at most the weakest candidate's scanned
    activation, plus the largest error seen in the channel) stays below the K-th.

    Args:
        scanned: the candidates with the scan's activations, at most `kept` a channel.
        exact: the same candidates in the same order, recomputed.
        top_k: how many to keep.
        kept: how many candidates the scan kept.
    """
    error = np.abs(scanned.activation.astype(np.float64) - exact.activation)
    channels = np.stack([scanned.series, scanned.channel], axis=1)
    names, which, count = np.unique(channels, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    worst_error = np.zeros(len(names))
    np.maximum.at(worst_error, which, error)
    weakest_scanned = np.full(len(names), np.inf)
    np.minimum.at(weakest_scanned, which, scanned.activation)

    order, ranks = rank(exact)
    order, ranks = order[ranks <= top_k], ranks[ranks <= top_k]
    kth = np.full(len(names), np.inf)
    np.minimum.at(kth, which[order], exact.activation[order])

    # Without any error, the scan's order is the exact order, ties included.
    doubtful = (count == kept) & (worst_error > 0) & (weakest_scanned + worst_error >= kth)
    unsettled = [(int(series), int(channel)) for series, channel in names[doubtful]]
    return Ranking(order, ranks, float(error.max(initial=0.0)), unsettled)


@dataclass(frozen=True)
class Exemplars:
    """The answer before it is written: the top K, in order, and where each one fired."""

    scores: Scores
    """Sorted by (series, channel, rank)."""
    ranks: np.ndarray
    """int32, from 1."""
    percentiles: np.ndarray
    """float64: share of scored images below, 0..100."""
    places: pa.Table
    """`PLACES_SCHEMA`, a row an exemplar."""


def write_exemplars(path: str, plan: Plan, exemplars: Exemplars, images: ImageSpool, partial: str | None) -> None:
    """Write the table, one row group of `ROWS_PER_GROUP` rows after another.

    Equal arguments give equal bytes.

    Args:
        path: a local file.
        partial: None, or what the result leaves out, for the file's metadata.
    """
    schema = exemplars_schema(plan, partial)
    dictionaries = ["layer", "statistic", "shard", "class_name"]
    with pq.ParquetWriter(path, schema, compression=_compression(schema), use_dictionary=dictionaries) as writer:
        for start in range(0, len(exemplars.ranks), ROWS_PER_GROUP):
            rows = range(start, min(start + ROWS_PER_GROUP, len(exemplars.ranks)))
            writer.write_table(_row_group(schema, plan, exemplars, rows, images))


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


def _row_group(schema: pa.Schema, plan: Plan, exemplars: Exemplars, rows: range, images: ImageSpool) -> pa.Table:
    scores = exemplars.scores.take(np.array(rows))
    series = layers_and_statistics(plan.spec)
    found = [images.image(int(s), int(r)) for s, r in zip(scores.shard, scores.row, strict=True)]
    places = exemplars.places.slice(rows.start, len(rows))
    peaks = list(zip(places["peak_y"].to_pylist(), places["peak_x"].to_pylist(), strict=True))
    framings = [Framing.of(image["width"], image["height"], plan.spec.preprocess) for image in found]
    map_sizes = [series[s][0].map_size or (None, None) for s in scores.series]
    labels = plan.class_labels
    columns = {
        "layer": [series[s][0].name for s in scores.series],
        "statistic": [series[s][1] for s in scores.series],
        "channel": scores.channel,
        "rank": exemplars.ranks[rows.start : rows.stop],
        "activation": scores.activation,
        "shard": [plan.shards[s].name for s in scores.shard],
        "row": scores.row,
        "image_path": [image["path"] for image in found],
        "label": [image["label"] for image in found],
        "synset_id": [labels.synset_id(image["label"], image["path"]) for image in found],
        "class_name": [labels.class_name(image["label"]) for image in found],
        "image": [{"bytes": image["bytes"], "path": image["path"]} for image in found],
        "percentile": exemplars.percentiles[rows.start : rows.stop],
        "peak_y": places["peak_y"],
        "peak_x": places["peak_x"],
        "activation_map": places["activation_map"],
        "map_height": [height for height, _ in map_sizes],
        "map_width": [width for _, width in map_sizes],
        "view_box": [framing.view_box for framing in framings],
        "field_box": [
            field_box(series[s][0].field, peak, framing)
            for s, peak, framing in zip(scores.series, peaks, framings, strict=True)
        ],
    }
    return pa.table(columns, schema=schema)
