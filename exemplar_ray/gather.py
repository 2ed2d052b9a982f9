"""Gather: the candidates of one shard -> their images and their exact activations.

Every number of the result is recomputed here from the image that the row names, and held
against what the scan said of it. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.errors import ShardError
from exemplar_ray.exemplars import IMAGES_SCHEMA, PLACES_SCHEMA
from exemplar_ray.images import UndecodableImageError, size_of
from exemplar_ray.parts import series_of
from exemplar_ray.scan import decode_ahead
from exemplar_ray.shards import ImageRow, Shard, ShardReader
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores

# The reference computation: this batch shape, one thread, on the CPU. Convolutions round
# differently with other shapes and thread counts; fixing them makes the result the same on
# a laptop and on a cluster, whatever the scan ran on.
REFERENCE_BATCH = 16
REFERENCE_THREADS = 1

# How far scan and gather may disagree: rounding, as a share of the activation itself and of
# the largest one in the shard (a small activation is what is left of large ones that cancel).
# A row that named another image would be far beyond both.
_TOLERANCE = 1e-3
_TOLERANCE_OF_LARGEST = 1e-5


@dataclass(frozen=True)
class GatheredShard:
    """What gather found out about one shard's candidates."""

    images: pa.Table
    """`IMAGES_SCHEMA`: a row an image, in row order."""
    exact: Scores
    """The candidates in the order given, with recomputed activations."""
    places: pa.Table
    """`PLACES_SCHEMA`: a row a candidate, in the same order: where in the layer's map the
    channel is strongest, and the map, row by row. Null for layers without maps."""


def gather_shard(trunk: Trunk, spec: ResolvedSpec, shard: Shard, candidates: Scores) -> GatheredShard:
    """Fetch the candidates' images and recompute their activations.

    Args:
        trunk: on the CPU, for the run's layers and statistics.
        candidates: scores of this shard, as the scan computed them.

    Raises:
        ShardError: an image is gone, cannot be decoded any more, or gives another activation
            than the scan recorded: the shard is not the one that was scanned.
    """
    rows = np.unique(candidates.row)
    exact = candidates.activation.copy()
    places: list[tuple[int, int, np.ndarray] | tuple[None, None, None]] = [(None, None, None)] * len(exact)
    size = spec.preprocess.crop
    crops = torch.zeros((REFERENCE_BATCH, size, size, 3), dtype=torch.uint8)
    series = series_of(spec)
    channel_places = {layer.name: {c: i for i, c in enumerate(layer.channels)} for layer in spec.layers}
    table: dict[str, list] = {name: [] for name in IMAGES_SCHEMA.names}

    def rescore(batch_rows: list[int]) -> None:
        pooled, outputs = trunk.with_maps(crops)
        place_in_batch = {row: i for i, row in enumerate(batch_rows)}
        for i in np.flatnonzero(np.isin(candidates.row, batch_rows)):
            layer, statistic = series[candidates.series[i]]
            at = place_in_batch[int(candidates.row[i])], channel_places[layer][int(candidates.channel[i])]
            exact[i] = pooled[layer, statistic][at]
            if outputs[layer].dim() == 4:
                places[i] = _peak_and_map(outputs[layer][at].numpy())

    def keep_bytes(images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        for image in images:
            for name in ("row", "label", "path"):
                table[name].append(getattr(image, name))
            table["bytes"].append(image.data)
            yield image

    batch_rows: list[int] = []
    with ShardReader(shard) as reader:
        images = keep_bytes(reader.select(rows))
        for image, pixels in decode_ahead(images, spec.preprocess, 1, REFERENCE_BATCH):
            if isinstance(pixels, UndecodableImageError):
                raise ShardError(f"{shard.name} changed: row {image.row} was scanned and is now broken: {pixels}")
            crops.numpy()[len(batch_rows)] = pixels
            batch_rows.append(image.row)
            if len(batch_rows) == REFERENCE_BATCH:
                rescore(batch_rows)
                batch_rows = []
    if batch_rows:
        crops[len(batch_rows) :] = 0
        rescore(batch_rows)
    if table["row"] != rows.tolist():
        raise ShardError(f"{shard.name} changed: {len(rows) - len(table['row'])} scanned rows are gone")
    table["width"], table["height"] = zip(*map(size_of, table["bytes"]), strict=True)
    # + 0 turns -0 into +0: one activation, one way to write it.
    result = candidates._replace(activation=exact + np.float32(0))
    _refuse_mix_up(shard, series, candidates, result)
    columns = dict(zip(PLACES_SCHEMA.names, zip(*places, strict=True), strict=True))
    return GatheredShard(pa.table(table, schema=IMAGES_SCHEMA), result, pa.table(columns, schema=PLACES_SCHEMA))


def _peak_and_map(activation_map: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Return row and column of the strongest unit (the first of equals), and the map, flattened."""
    y, x = np.unravel_index(activation_map.argmax(), activation_map.shape)
    return int(y), int(x), activation_map.astype(np.float16).reshape(-1)


def _refuse_mix_up(shard: Shard, series: list[tuple[str, str]], scanned: Scores, exact: Scores) -> None:
    """Compare the scan's activations with the recomputed ones."""
    largest = np.zeros(len(series), dtype=np.float32)
    np.maximum.at(largest, exact.series, np.abs(exact.activation))
    allowed = _TOLERANCE * np.abs(exact.activation) + _TOLERANCE_OF_LARGEST * largest[exact.series]
    # not (a <= b) rather than a > b: NaN must count as a mix-up.
    wrong = np.flatnonzero(~(np.abs(scanned.activation - exact.activation) <= allowed))
    if len(wrong):
        i = wrong[0]
        layer, statistic = series[exact.series[i]]
        raise ShardError(
            f"{shard.name} changed: row {exact.row[i]} gives {exact.activation[i]:.6g} for the {statistic} of "
            f"{layer} channel {exact.channel[i]}, the scan recorded {scanned.activation[i]:.6g} "
            f"({len(wrong)} such rows); scan it again after removing its part from the run folder"
        )
