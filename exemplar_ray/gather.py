"""Gather: the candidates of one shard -> their images and their exact activations.

Every number of the result is recomputed here from the image that the row names, and held
against what the scan said of it. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.batches import decode_ahead
from exemplar_ray.errors import ShardError
from exemplar_ray.images import UndecodableImageError, size_of
from exemplar_ray.near_duplicates import perceptual_hash
from exemplar_ray.parts import before_relu, candidate_series, layers_and_statistics
from exemplar_ray.selection import IMAGES_SCHEMA, PLACES_SCHEMA
from exemplar_ray.shards import ImageRow, Shard, ShardReader
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores

# The reference computation: one image at a time, one thread, on the CPU. Convolutions round
# differently with other shapes and thread counts; fixing them makes the result the same on
# a laptop and on a cluster, whatever the scan ran on. Batches would gain a twentieth.
REFERENCE_THREADS = 1

_IMAGES_AHEAD = 16

# How far scan and gather may disagree: rounding, as a share of the activation itself and of
# the largest one in the shard (a small activation is what is left of large ones that cancel).
# A row that named another image would be far beyond both.
_TOLERANCE = 1e-3
_TOLERANCE_OF_LARGEST = 1e-5
# Half precision is off by up to a 256th at every step on the way.
_TOLERANCE_OF_SCREENING = 0.25
_TOLERANCE_OF_LARGEST_OF_SCREENING = 0.1


@dataclass(frozen=True)
class GatheredShard:
    """What gather found out about one shard's candidates."""

    images: pa.Table
    """`IMAGES_SCHEMA`: a row an image, in row order."""
    exact: Scores
    """The candidates in the order given, with recomputed activations."""
    places: pa.Table
    """`PLACES_SCHEMA`: a row a candidate, in the same order. Null for layers without maps."""


def gather_shard(trunk: Trunk, spec: ResolvedSpec, shard: Shard, candidates: Scores) -> GatheredShard:
    """Fetch the candidates' images and recompute their activations.

    Args:
        trunk: on the CPU, for the run's layers and statistics.
        candidates: scores of this shard, as the scan computed them, by `candidate_series`.

    Raises:
        ShardError: an image is gone, cannot be decoded any more, or gives another activation
            than the scan recorded: the shard is not the one that was scanned.
    """
    rows = np.unique(candidates.row)
    largest = np.zeros(len(candidate_series(spec)), np.float32)
    exact = candidates.activation.copy()
    places = _Places(spec, candidates)
    pairs = layers_and_statistics(spec)
    before_relus = [(layer, before_relu(statistic)) for layer, statistic in pairs]
    table: dict[str, list] = {name: [] for name in IMAGES_SCHEMA.names}
    by_row = np.argsort(candidates.row, kind="stable")
    starts = np.searchsorted(candidates.row[by_row], [*rows, np.iinfo(np.int64).max])

    def rescore(of_image: np.ndarray, pixels: np.ndarray) -> None:
        near_0 = bool((candidates.series[of_image] >= len(pairs)).any())
        pooled, outputs = trunk.with_maps(torch.tensor(pixels[None]), before_relus=near_0)
        for number, (layer, statistic) in enumerate(pairs + before_relus if near_0 else pairs):
            which = of_image[candidates.series[of_image] == number]
            channels = np.searchsorted(layer.channels, candidates.channel[which])
            values = pooled[layer.name, statistic].numpy()[0]
            exact[which] = values[channels]
            largest[number] = max(largest[number], np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max())
            if layer.map_size and number < len(pairs):
                places.keep(which, outputs[layer.name].numpy()[0, channels])

    def keep_bytes(images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        for image in images:
            for name in ("row", "label", "path"):
                table[name].append(getattr(image, name))
            table["bytes"].append(image.data)
            yield image

    with ShardReader(shard) as reader:
        images = keep_bytes(reader.select(rows))
        for image, pixels in decode_ahead(images, spec.preprocess, 1, _IMAGES_AHEAD):
            if isinstance(pixels, UndecodableImageError):
                raise ShardError(f"{shard.name} changed: row {image.row} was scanned and is now broken: {pixels}")
            table["hash"].append(perceptual_hash(pixels))
            place = np.searchsorted(rows, image.row)
            rescore(by_row[starts[place] : starts[place + 1]], pixels)
    if table["row"] != rows.tolist():
        raise ShardError(f"{shard.name} changed: {len(rows) - len(table['row'])} scanned rows are gone")
    table["width"], table["height"] = zip(*map(size_of, table["bytes"]), strict=True)
    # + 0 turns -0 into +0: one activation, one way to write it.
    result = candidates._replace(activation=exact + np.float32(0))
    _refuse_mix_up(shard, spec, candidates, result, largest)
    return GatheredShard(pa.table(table, schema=IMAGES_SCHEMA), result, places.table())


class _Places:
    """Peaks and maps of candidates, in the candidates' order."""

    def __init__(self, spec: ResolvedSpec, candidates: Scores) -> None:
        sizes = [layer.map_size or (0, 0) for layer, _ in layers_and_statistics(spec)]
        # Before a ReLU only the number is asked for.
        sizes += [(0, 0)] * len(sizes)
        units = np.array([height * width for height, width in sizes], np.int64)[candidates.series]
        self._offsets = np.concatenate([[0], np.cumsum(units)]).astype(np.int32)
        self._maps = np.zeros(self._offsets[-1], np.float16)
        self._peaks = np.zeros((2, len(units)), np.int32)
        self._no_map = units == 0

    def keep(self, which: np.ndarray, maps: np.ndarray) -> None:
        """Take the maps, float32 [n, height, width], of some candidates of one layer."""
        flat = maps.reshape(len(maps), math.prod(maps.shape[1:]))
        # The first of equals, NaN aside; a map of a ranked activation has none.
        self._peaks[:, which] = np.unravel_index(flat.argmax(axis=1), maps.shape[1:])
        self._maps[self._offsets[which][:, None] + np.arange(flat.shape[1])] = flat

    def table(self) -> pa.Table:
        """Return `PLACES_SCHEMA`."""
        no_map = pa.array(self._no_map)
        columns = [pa.array(peaks, mask=self._no_map) for peaks in self._peaks]
        columns.append(pa.ListArray.from_arrays(pa.array(self._offsets), pa.array(self._maps), mask=no_map))
        return pa.table(columns, schema=PLACES_SCHEMA)


def _refuse_mix_up(shard: Shard, spec: ResolvedSpec, scanned: Scores, exact: Scores, largest: np.ndarray) -> None:
    """Compare the scan's activations with the recomputed ones.

    What screening saw at 0, or below it before a ReLU, tells no image from another.

    Args:
        largest: of each of `candidate_series`, in any channel on these images.
    """
    series = candidate_series(spec)
    share, share_of_largest = _TOLERANCE, _TOLERANCE_OF_LARGEST
    if spec.screened:
        share, share_of_largest = _TOLERANCE_OF_SCREENING, _TOLERANCE_OF_LARGEST_OF_SCREENING
    allowed = share * np.abs(exact.activation) + share_of_largest * largest[exact.series]
    # not (a <= b) rather than a > b: NaN must count as a mix-up.
    wrong = ~(np.abs(scanned.activation - exact.activation) <= allowed)
    if spec.screened:
        wrong &= (scanned.activation != 0) & (scanned.series < len(layers_and_statistics(spec)))
    wrong = np.flatnonzero(wrong)
    if len(wrong):
        i = wrong[0]
        layer, statistic = series[exact.series[i]]
        raise ShardError(
            f"{shard.name} changed: row {exact.row[i]} gives {exact.activation[i]:.6g} for the {statistic} of "
            f"{layer} channel {exact.channel[i]}, the scan recorded {scanned.activation[i]:.6g} "
            f"({len(wrong)} such rows); scan it again after removing its part from the run folder"
        )
