"""The answer: rank the recomputed candidates, write `exemplars.parquet`. Knows no torch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.labels import ClassLabels
from exemplar_ray.parts import candidates_kept, series_of
from exemplar_ray.run_folder import Plan
from exemplar_ray.topk import Scores, rank

ROWS_PER_GROUP = 100


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

    def add(self, shard: int, images: pa.Table) -> None:
        """Keep one shard's images (`gather.IMAGES_SCHEMA`)."""
        path = str(Path(self._folder.name) / f"{shard}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, images.schema) as writer:
            writer.write_table(images)
        self._tables[shard] = pa.ipc.open_file(pa.memory_map(path)).read_all()
        self._places[shard] = {row: place for place, row in enumerate(images["row"].to_pylist())}

    def image(self, shard: int, row: int) -> tuple[int | None, str | None, bytes]:
        """Return an image's label, path and original bytes."""
        table, place = self._tables[shard], self._places[shard][row]
        return tuple(table[name][place].as_py() for name in ("label", "path", "bytes"))


@dataclass(frozen=True)
class Ranking:
    """The top K under the recomputed activations, and whether they are beyond doubt."""

    scores: Scores
    """Sorted by (series, channel, rank)."""
    ranks: np.ndarray
    """int32, from 1."""
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

    ranked, ranks = rank(exact)
    inside = ranks <= top_k
    top, top_ranks = ranked.take(inside), ranks[inside]
    kth = np.full(len(names), np.inf)
    _, which_top = np.unique(np.stack([top.series, top.channel], axis=1), axis=0, return_inverse=True)
    np.minimum.at(kth, which_top.reshape(-1), top.activation)

    # Without any error, the scan's order is the exact order, ties included.
    doubtful = (count == kept) & (worst_error > 0) & (weakest_scanned + worst_error >= kth)
    unsettled = [(int(series), int(channel)) for series, channel in names[doubtful]]
    return Ranking(top, top_ranks, float(error.max(initial=0.0)), unsettled)


def rank_candidates(plan: Plan, scanned: Scores, exact: Scores) -> Ranking:
    """Do `rank_exactly` with a run's K and candidate count."""
    return rank_exactly(scanned, exact, plan.spec.top_k, candidates_kept(plan.spec))


def write_exemplars(path: str, plan: Plan, ranking: Ranking, images: ImageSpool, partial: str | None) -> None:
    """Write the table, one row group of `ROWS_PER_GROUP` rows after another.

    Equal arguments give equal bytes.

    Args:
        path: a local file.
        partial: None, or what the result leaves out, for the file's metadata.
    """
    schema = exemplars_schema(plan, partial)
    options = {"image.bytes": "none"}  # already compressed
    columns = [f"image.{f.name}" if name == "image" else name for name in schema.names for f in _leaves(schema, name)]
    compression = {column: options.get(column, "zstd") for column in columns}
    dictionaries = [column for column in columns if column in ("layer", "statistic", "shard", "class_name")]
    with pq.ParquetWriter(path, schema, compression=compression, use_dictionary=dictionaries) as writer:
        for table in _row_groups(schema, plan, ranking, images):
            writer.write_table(table)


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
    ]
    features: dict[str, Any] = {
        name: {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"} for name, kind in fields
    }
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


def _leaves(schema: pa.Schema, name: str) -> list[pa.Field]:
    kind = schema.field(name).type
    return [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else [schema.field(name)]


def _row_groups(schema: pa.Schema, plan: Plan, ranking: Ranking, images: ImageSpool) -> Iterator[pa.Table]:
    series = series_of(plan.spec)
    for start in range(0, len(ranking.ranks), ROWS_PER_GROUP):
        group = ranking.scores.take(np.arange(start, min(start + ROWS_PER_GROUP, len(ranking.ranks))))
        ranks = ranking.ranks[start : start + ROWS_PER_GROUP]
        yield _row_group(schema, plan.class_labels, plan, series, group, ranks, images)


def _row_group(
    schema: pa.Schema,
    labels: ClassLabels,
    plan: Plan,
    series: list[tuple[str, str]],
    group: Scores,
    ranks: np.ndarray,
    images: ImageSpool,
) -> pa.Table:
    found = [images.image(int(s), int(r)) for s, r in zip(group.shard, group.row, strict=True)]
    columns = {
        "layer": [series[s][0] for s in group.series],
        "statistic": [series[s][1] for s in group.series],
        "channel": group.channel,
        "rank": ranks,
        "activation": group.activation,
        "shard": [plan.shards[s].name for s in group.shard],
        "row": group.row,
        "image_path": [path for _, path, _ in found],
        "label": [label for label, _, _ in found],
        "synset_id": [labels.synset_id(label, path) for label, path, _ in found],
        "class_name": [labels.class_name(label) for label, _, _ in found],
        "image": [{"bytes": data, "path": path} for _, path, data in found],
    }
    return pa.table(columns, schema=schema)
