"""Gather: the candidates of one shard -> their images and their exact activations.

Every number of the result is recomputed here from the image that the row names, and held
against what the scan said of it. Knows nothing of Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.errors import ShardError
from exemplar_ray.images import UndecodableImageError
from exemplar_ray.parts import series_of
from exemplar_ray.scan import decode_ahead
from exemplar_ray.shards import Shard, ShardReader
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

IMAGES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("path", pa.string()),
        ("bytes", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class GatheredShard:
    """One shard's candidates: `images` (`IMAGES_SCHEMA`, a row an image, in row order), and
    `exact`, the candidates in the order given, with recomputed activations."""

    images: pa.Table
    exact: Scores


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
    size = spec.preprocess.crop
    crops = torch.zeros((REFERENCE_BATCH, size, size, 3), dtype=torch.uint8)
    series = series_of(spec)
    places = {layer.name: {c: i for i, c in enumerate(layer.channels)} for layer in spec.layers}
    table: dict[str, list] = {name: [] for name in IMAGES_SCHEMA.names}

    def rescore(batch_rows: list[int]) -> None:
        pooled = {key: values.numpy() for key, values in trunk(crops).items()}
        place_in_batch = {row: i for i, row in enumerate(batch_rows)}
        for i in np.flatnonzero(np.isin(candidates.row, batch_rows)):
            key = series[candidates.series[i]]
            channel = places[key[0]][int(candidates.channel[i])]
            exact[i] = pooled[key][place_in_batch[int(candidates.row[i])], channel]

    def keep_bytes(images):
        for image in images:
            for name, value in zip(table, (image.row, image.label, image.path, image.data), strict=True):
                table[name].append(value)
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
    result = candidates._replace(activation=exact)
    _refuse_mix_up(shard, series, candidates, result)
    return GatheredShard(pa.table(table, schema=IMAGES_SCHEMA), result)


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
