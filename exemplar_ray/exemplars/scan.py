"""Scan: one shard of images -> one part, in one go or in pieces. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from exemplar_ray.data.shard import Shard
from exemplar_ray.exemplars.collect import PartCollector
from exemplar_ray.exemplars.collected import Collected
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.reference import Answer, Answers, Key
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
    answers: dict[Key, Answer] | None = None
    """What the network says of each image, where it is scanned by the reference; None where it is not."""


@dataclass(frozen=True)
class ScannedPiece:
    """What came out of a piece of a shard."""

    collected: Collected
    read: RowsRead
    answers: dict[Key, Answer] | None = None
    """See `ScanResult`."""


def scan_shard(trunk: Trunk | CompiledTrunk, settings: ScanSettings, shard: Shard, position: int) -> ScanResult:
    """Score every image of a shard and keep each channel's best candidates.

    Args:
        position: the shard's place in the sorted shard list.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up, the file is not the
            listed one, or an image lacks a label that the network is to be given.
    """
    return join([scan_piece(trunk, settings, shard, position, None)], settings, shard)


def scan_piece(
    trunk: Trunk | CompiledTrunk, settings: ScanSettings, shard: Shard, position: int, piece: int | None
) -> ScannedPiece:
    """Score every image of a piece of a shard.

    Args:
        position: the shard's place in the sorted shard list.
        piece: which, see `data.pieces`; None for all of them, one after another, put together.

    Raises:
        ShardError: see `scan_shard`; of a single piece nobody can tell yet whether too many of the shard's images
            cannot be decoded, which `join` does.
    """
    spec, answers = settings.spec, Answers(settings.spec.network) if settings.by_reference else None
    reading = ReadOptions(
        batch_size=settings.batch_size,
        threads=settings.threads,
        max_skipped=settings.max_skipped,
        decode=spec.decode,
        most_rows=settings.most_rows,
        small_pieces=settings.by_reference,
    )
    spectrum = RunningSpectrum(spec.network.preprocess, trunk.device)
    with (
        ShardImages(spec.network, shard, reading, trunk.device, piece) as images,
        PartCollector(settings, position, trunk.device, images.cuts) as collector,
    ):
        prepare = collector.prioritise if spec.drawn_samples else iter
        for batch, labels in images.batches(prepare if answers is None else answers.noting(prepare)):
            if answers is not None and isinstance(trunk, Trunk):
                pooled = answers.ask(trunk, batch, labels)
            else:
                pooled = trunk(batch.crops, labels)
            collector.add(pooled, batch.images)
            spectrum.update(batch.crops[: len(batch.images)])
        read = images.rows_read()
        collected = collector.result()
    collected = collected._replace(part=replace(collected.part, spectrum=spectrum.result()))
    return ScannedPiece(collected, read, None if answers is None else answers.by_content)


def join(pieces: Iterable[ScannedPiece], settings: ScanSettings, shard: Shard) -> ScanResult:
    """Put a shard's pieces together, one by one: what `scan_shard` returns of it.

    Args:
        pieces: all of them, in order.

    Raises:
        ShardError: see `scan_shard`.
    """
    following = iter(pieces)
    whole = next(following)
    for piece in following:
        collected = whole.collected.joined(piece.collected, settings.spec)
        answers = None if whole.answers is None else {**whole.answers, **(piece.answers or {})}
        whole = ScannedPiece(collected, whole.read.joined(piece.read, shard), answers)
    whole.read.refuse(shard, settings.max_skipped)
    not_finite = whole.collected.of_channels_not_finite(settings.spec)
    return ScanResult(whole.collected.part, whole.read, not_finite, whole.answers)
