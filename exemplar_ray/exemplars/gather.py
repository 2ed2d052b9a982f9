"""Gather: the candidates of one shard -> their images and their exact activations.

Every number of the result is recomputed here from the image that the row names, and held
against what the scan said of it. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from exemplar_ray.data.decode import UndecodableImageError, size_of
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.shard import ImageRow, Shard
from exemplar_ray.exemplars.gathered import IMAGES_SCHEMA, MAPS_SCHEMA, GatheredShard, units_of_maps
from exemplar_ray.exemplars.list_columns import list_column
from exemplar_ray.exemplars.mix_up import Gathered, NotAsScannedError, outside_tolerance, refuse_mix_up
from exemplar_ray.exemplars.reference import Answer, Reference
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, Scores
from exemplar_ray.network.trunk import Trunk
from exemplar_ray.prefetch import map_ahead

_IMAGES_AHEAD = 16

_LARGEST_IN_MAP = float(np.finfo(np.float16).max)


def gather_shard(
    trunk: Trunk, spec: ExemplarsSpec, shard: Shard, candidates: Scores, reference: Reference | None = None
) -> GatheredShard:
    """Fetch the candidates' images and recompute their activations.

    An activation that the scan saw as a number may come out as none: then the network's numbers hang on rounding there.

    Args:
        trunk: on the CPU, for the run's layers and statistics.
        candidates: scores of this shard, as the scan computed them.
        reference: of this trunk; it may know copies of the images from other shards.

    Raises:
        NotAsScannedError: an image is gone, cannot be decoded any more, or gives another activation than the scan
            recorded: the shard is not the one that was scanned, or was scanned wrongly.
        ShardError: the shard is damaged.
        UsageError: the network is no function of the image, see `mix_up`.
    """
    rows = np.unique(candidates.row)
    reference = reference or Reference(trunk, spec.network)
    rescoring = _Rescoring(spec, candidates)
    table: dict[str, list] = {name: [] for name in IMAGES_SCHEMA.names}

    def keep_bytes(images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        for image in images:
            table["row"].append(image.row)
            table["path"].append(image.path)
            # A negative label is none.
            table["label"].append(image.label if image.label is not None and image.label >= 0 else None)
            table["bytes"].append(image.data)
            yield image

    with open_shard(shard) as reader:
        images = keep_bytes(reader.select(rows))
        for prepared in map_ahead(reference.prepare, images, threads=1, ahead=_IMAGES_AHEAD):
            row = table["row"][len(table["hash"])]
            if isinstance(prepared, UndecodableImageError):
                raise NotAsScannedError(f"{shard.name} changed: row {row} was scanned and is now broken: {prepared}")
            answer = reference.answer(shard.name, prepared, rescoring.wants_pre_relu(row))
            table["content"].append(prepared.content)
            table["hash"].append(answer.hash)
            rescoring.add(row, answer)
    if table["row"] != rows.tolist():
        raise NotAsScannedError(f"{shard.name} changed: {len(rows) - len(table['row'])} scanned rows are gone")
    for size in map(size_of, table["bytes"]):
        table["width"].append(size[0])
        table["height"].append(size[1])
    exact = rescoring.exact()
    outside = outside_tolerance(spec, candidates, exact, rescoring.largest)
    if len(outside):
        columns = (table[name] for name in ("row", "bytes", "path", "label"))
        by_row = {image.row: image for image in map(ImageRow, *columns)}
        refuse_mix_up(Gathered(trunk, spec, shard, by_row), candidates, exact, outside)
    return GatheredShard(
        images=pa.table(table, schema=IMAGES_SCHEMA),
        exact=exact,
        maps=rescoring.maps.table(),
        # A screened scan's errors are expected, and told of channel by channel.
        beyond_rounding=0 if spec.screened else len(outside),
    )


class _Rescoring:
    """Takes candidates' numbers from what the network says of their images.

    `largest` is float32 [2, readouts]: the largest activation of each readout in any channel on these images, and the
    largest before its ReLU, of images for which that was asked.
    """

    def __init__(self, spec: ExemplarsSpec, candidates: Scores) -> None:
        self._readouts = spec.readouts
        self._candidates = candidates
        self._activation = candidates.activation.copy()
        by_row = np.argsort(candidates.row, kind="stable")
        rows, firsts, counts = np.unique(candidates.row[by_row], return_index=True, return_counts=True)
        # {row: where its candidates are}
        self._of_image = {
            row: by_row[first : first + count] for row, first, count in zip(rows.tolist(), firsts, counts, strict=True)
        }
        self.largest = np.zeros((2, len(self._readouts)), np.float32)
        self.maps = _Maps(spec, candidates)

    def wants_pre_relu(self, row: int) -> bool:
        """Whether any candidate of an image is wanted as it is before its ReLU."""
        return bool((self._candidates.ranking[self._of_image[row]] == NEAR_ZERO).any())

    def add(self, row: int, answer: Answer) -> None:
        """Take all candidates of one image."""
        of_image = self._of_image[row]
        near_zero = self._candidates.ranking[of_image] == NEAR_ZERO
        wanted = (answer.activations, of_image[~near_zero]), (answer.pre_relu, of_image[near_zero])
        for is_pre_relu, (of_readouts, which) in enumerate(wanted):
            for number, (layer, statistic) in enumerate(self._readouts if of_readouts else ()):
                values = of_readouts[layer.name, statistic]
                here = which[self._candidates.readout[which] == number]
                channels = np.searchsorted(layer.channels, self._candidates.channel[here])
                self._activation[here] = values[channels]
                largest = np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max()
                self.largest[is_pre_relu, number] = max(self.largest[is_pre_relu, number], largest)
                if layer.map_size and not is_pre_relu:
                    self.maps.keep(here, answer.maps[layer.name][channels])

    def exact(self) -> Scores:
        """Return the candidates in the order given, recomputed."""
        # + 0 turns -0 into +0: one activation, one way to write it.
        return self._candidates._replace(activation=self._activation + np.float32(0))


class _Maps:
    """Peaks and maps of candidates, in the candidates' order."""

    def __init__(self, spec: ExemplarsSpec, candidates: Scores) -> None:
        self._units = units_of_maps(spec, candidates)
        self._offsets = np.concatenate([[0], np.cumsum(self._units)])
        self._maps = np.zeros(self._offsets[-1], np.float16)
        self._peaks = np.zeros((2, len(self._units)), np.int32)

    def keep(self, which: np.ndarray, maps: np.ndarray) -> None:
        """Take the maps, float32 [n, height, width], of some candidates of one layer."""
        flat = maps.reshape(len(maps), math.prod(maps.shape[1:]))
        # The first of equals. NaN is no peak: a map may have some where its middle unit is ranked.
        strongest = np.where(np.isnan(flat), -np.inf, flat).argmax(axis=1)
        self._peaks[:, which] = np.unravel_index(strongest, maps.shape[1:])
        # What is larger than float16 has room for stands as the largest that there is, infinity aside.
        within = np.where(np.isfinite(flat), flat.clip(-_LARGEST_IN_MAP, _LARGEST_IN_MAP), flat)
        self._maps[self._offsets[which][:, None] + np.arange(flat.shape[1])] = within

    def table(self) -> pa.Table:
        """Return `MAPS_SCHEMA`."""
        no_map = self._units == 0
        columns = [pa.array(peaks, mask=no_map) for peaks in self._peaks]
        return pa.table([*columns, list_column(self._units, self._maps, no_map)], schema=MAPS_SCHEMA)
