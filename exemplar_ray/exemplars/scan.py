"""Scan: one shard of images -> one part. Knows nothing of Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from exemplar_ray.data.batches import batches
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.shard import ImageRow, Shard
from exemplar_ray.errors import ShardError
from exemplar_ray.exemplars.collect import PartCollector
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.plan import row_of_skipped
from exemplar_ray.exemplars.running_spectrum import RunningSpectrum
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.network.compiled_trunk import CompiledTrunk
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.trunk import Trunk

_REASONS_IN_MESSAGE = 3

_log = logging.getLogger(__name__)


@dataclass
class ScanResult:
    """What came out of one shard. `scored` and the skipped images add up to `rows`."""

    part: Part
    rows: int
    scored: int
    skipped_images: list[dict[str, object]] = field(default_factory=list)
    """[{"row": int, "reason": str}], in order; with the "path" where the scan knows it."""
    not_finite: list[dict[str, object]] = field(default_factory=list)
    """[{"layer", "statistic", "channel", "images"}] of channels that gave NaN or infinity."""
    contents: list[str] | None = None
    """What the bytes were, see `ShardReader.contents`."""
    places: Sequence[int] | None = None
    """Where rows are, see `ShardReader.places`."""


def scan_shard(trunk: Trunk | CompiledTrunk, settings: ScanSettings, shard: Shard, position: int) -> ScanResult:
    """Score every image of a shard and keep each channel's best candidates.

    Every forward pass has the same batch shape (the last batch is padded), so an image's
    activation does not depend on how many images were left over.

    Args:
        position: the shard's place in the sorted shard list.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up, the file is not the
            listed one, or an image lacks a label that the network is to be given.
    """
    spec, max_skipped = settings.spec, settings.max_skipped
    skipped: list[dict[str, object]] = []
    scored = 0
    spectrum = RunningSpectrum(spec.network.preprocess, trunk.device)
    with open_shard(shard) as reader, PartCollector(settings, position, trunk.device) as collector:
        images: Iterable[ImageRow] = islice(reader.images(), settings.most_rows)
        images = collector.prioritise(images) if spec.drawn_samples else images
        for batch in batches(
            images, spec.network.preprocess, settings.batch_size, settings.threads, trunk.device, spec.decode
        ):
            for image, reason in batch.undecodable:
                _log.info("%s row %d is skipped: %s", shard.name, image.row, reason)
                known = {} if image.path is None else {"path": image.path}
                skipped.append({"row": image.row, **known, "reason": str(reason)})
            # A shard that has failed is read to its end, so that the message can name every
            # bad image, but nothing more is computed for it.
            if len(skipped) > max_skipped or not batch.images:
                continue
            scored += len(batch.images)
            labels = labels_for(spec.network, shard.name, batch.images, len(batch.crops))
            collector.add(trunk(batch.crops, labels), batch.images)
            spectrum.update(batch.crops[: len(batch.images)])
        rows = reader.rows if settings.most_rows is None else min(reader.rows, settings.most_rows)
        if len(skipped) > max_skipped:
            raise ShardError(_too_many_skipped(shard, skipped, max_skipped))
        part, not_finite = collector.result()
        part = replace(part, spectrum=spectrum.result())
        contents, places = reader.contents, reader.places
    refuse_lost_rows(shard, rows, scored, len(skipped))
    return ScanResult(part, rows, scored, skipped, not_finite, contents, places)


def refuse_lost_rows(shard: Shard, rows: int, scored: int, skipped: int) -> None:
    """Refuse a shard of which rows were neither scored nor skipped.

    Raises:
        ShardError: the rows do not add up.
    """
    if rows != scored + skipped:
        raise ShardError(f"{shard.name}: {rows} rows, but {scored} scored and {skipped} skipped")


def _too_many_skipped(shard: Shard, skipped: list[dict[str, object]], max_skipped: int) -> str:
    shown = "; ".join(f"{row_of_skipped(s)}: {s['reason']}" for s in skipped[:_REASONS_IN_MESSAGE])
    more = f"; and {len(skipped) - _REASONS_IN_MESSAGE} more" if len(skipped) > _REASONS_IN_MESSAGE else ""
    return (
        f"{shard.name}: {len(skipped)} undecodable images, max_skipped is {max_skipped} ({shown}{more}); "
        f"repair the shard, or run again with --max-skipped {len(skipped)}"
    )
