"""Scan: one shard of images -> one part. Knows nothing of Ray."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from exemplar_ray.data.shard import Shard
from exemplar_ray.exemplars.collect import PartCollector
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.running_spectrum import RunningSpectrum
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.network.compiled_trunk import CompiledTrunk
from exemplar_ray.network.shard_images import ReadOptions, RowsRead, ShardImages
from exemplar_ray.network.trunk import Trunk


@dataclass
class ScanResult:
    """What came out of one shard."""

    part: Part
    read: RowsRead
    not_finite: list[dict[str, object]] = field(default_factory=list)
    """[{"layer", "statistic", "channel", "images"}] of channels that gave NaN or infinity."""


def scan_shard(trunk: Trunk | CompiledTrunk, settings: ScanSettings, shard: Shard, position: int) -> ScanResult:
    """Score every image of a shard and keep each channel's best candidates.

    Args:
        position: the shard's place in the sorted shard list.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up, the file is not the
            listed one, or an image lacks a label that the network is to be given.
    """
    spec = settings.spec
    reading = ReadOptions(settings.batch_size, settings.threads, settings.max_skipped, spec.decode, settings.most_rows)
    spectrum = RunningSpectrum(spec.network.preprocess, trunk.device)
    with (
        ShardImages(spec.network, shard, reading, trunk.device) as images,
        PartCollector(settings, position, trunk.device) as collector,
    ):
        for batch, labels in images.batches(collector.prioritise if spec.drawn_samples else iter):
            collector.add(trunk(batch.crops, labels), batch.images)
            spectrum.update(batch.crops[: len(batch.images)])
        read = images.rows_read()
        part, not_finite = collector.result()
    return ScanResult(replace(part, spectrum=spectrum.result()), read, not_finite)
