"""Scan: one shard of images -> one part. Knows nothing of Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.errors import ShardError
from exemplar_ray.images import UndecodableImageError, decode_and_crop
from exemplar_ray.parts import Part, candidates_kept, layers_and_statistics, series_of
from exemplar_ray.running_topk import RunningTopK
from exemplar_ray.shards import ImageRow, Shard, ShardReader
from exemplar_ray.spec import Preprocess, ResolvedSpec
from exemplar_ray.tallies import Tally
from exemplar_ray.tallies.classes import NO_LABEL
from exemplar_ray.topk import Scores, concatenate

ROWS_PER_BLOCK = 1024
_REASONS_IN_MESSAGE = 3


@dataclass
class ScannedShard:
    """What came out of one shard. `scored` and the skipped images add up to `rows`."""

    part: Part
    rows: int
    scored: int
    skipped_images: list[dict[str, object]] = field(default_factory=list)
    """[{"row": int, "reason": str}], in order."""
    not_finite: list[dict[str, object]] = field(default_factory=list)
    """[{"layer", "statistic", "channel", "images"}] of channels that gave NaN or infinity."""


def scan_shard(
    trunk: Trunk,
    spec: ResolvedSpec,
    shard: Shard,
    position: int,
    *,
    batch_size: int,
    decode_threads: int,
    max_skipped: int,
) -> ScannedShard:
    """Score every image of a shard and keep each channel's best candidates.

    Every forward pass has the same batch shape (the last batch is padded), so an image's
    activation does not depend on how many images were left over.

    Args:
        position: the shard's place in the sorted shard list.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up,
            or the file is not the listed one.
    """
    series = series_of(spec)
    running = {
        (layer.name, statistic): RunningTopK(len(layer.channels), candidates_kept(spec), trunk.device)
        for layer, statistic in layers_and_statistics(spec)
    }
    skipped: list[dict[str, object]] = []
    scored = 0

    tallying = _Tallying(spec)

    def score(crops: torch.Tensor, batch: list[ImageRow]) -> None:
        rows = torch.tensor([image.row for image in batch], device=trunk.device)
        pooled = {key: values[: len(batch)] for key, values in trunk(crops).items()}
        for key, values in pooled.items():
            running[key].update(values, rows)
        tallying.add(pooled, [NO_LABEL if image.label is None else image.label for image in batch])

    size = spec.preprocess.crop
    crops = torch.zeros((batch_size, size, size, 3), dtype=torch.uint8)
    batch: list[ImageRow] = []
    with ShardReader(shard) as reader:
        decoded = decode_ahead(reader.images(), spec.preprocess, decode_threads, 2 * batch_size)
        for image, pixels in decoded:
            if isinstance(pixels, UndecodableImageError):
                skipped.append({"row": image.row, "reason": str(pixels)})
                continue
            # A shard that has failed is read to its end, so that the message can name every
            # bad image, but nothing more is computed for it.
            if len(skipped) > max_skipped:
                continue
            crops.numpy()[len(batch)] = pixels
            batch.append(image)
            scored += 1
            if len(batch) == batch_size:
                score(crops, batch)
                batch = []
        rows = reader.rows
    if len(skipped) > max_skipped:
        raise ShardError(_too_many_skipped(shard, skipped, max_skipped))
    if batch:
        crops[len(batch) :] = 0
        score(crops, batch)
    if rows != scored + len(skipped):
        raise ShardError(f"{shard.name}: {rows} rows, but {scored} scored and {len(skipped)} skipped")
    scores, not_finite = _collect(spec, series, running, position)
    return ScannedShard(Part(scores, tallying.finish()), rows, scored, skipped, not_finite)


class _Tallying:
    """Gathers activations on the device and tallies them on the CPU, a block of rows at a time:
    one copy a block, not one a batch, and memory for only so many rows."""

    def __init__(self, spec: ResolvedSpec) -> None:
        self._series = series_of(spec)
        self._tallies = Part.empty(spec).tallies
        self._waiting: dict[tuple[str, str], list[torch.Tensor]] = {key: [] for key in self._series}
        self._labels: list[int] = []

    def add(self, pooled: dict[tuple[str, str], torch.Tensor], labels: list[int]) -> None:
        """Take in a batch's activations and labels, row for row."""
        for key, values in pooled.items():
            self._waiting[key].append(values)
        self._labels += labels
        if len(self._labels) >= ROWS_PER_BLOCK:
            self.finish()

    def finish(self) -> dict[str, list[Tally]]:
        """Tally what is waiting; return the tallies."""
        labels = np.array(self._labels, dtype=np.int64)
        for number, key in enumerate(self._series):
            if self._waiting[key]:
                block = torch.cat(self._waiting[key]).cpu().numpy()
                for tallies in self._tallies.values():
                    tallies[number].update(block, labels)
        self._waiting = {key: [] for key in self._series}
        self._labels = []
        return self._tallies


def decode_ahead(
    images: Iterable[ImageRow], preprocess: Preprocess, threads: int, ahead: int
) -> Iterator[tuple[ImageRow, np.ndarray | UndecodableImageError]]:
    """Decode and crop in threads, at most `ahead` images before the one being used.

    Yields:
        each row, in order, without its bytes, and its uint8 [crop, crop, 3] pixels or the
        reason why it has none.
    """
    waiting: deque[tuple[ImageRow, Future[np.ndarray]]] = deque()

    def finish() -> tuple[ImageRow, np.ndarray | UndecodableImageError]:
        image, future = waiting.popleft()
        error = future.exception()
        if error is not None and not isinstance(error, UndecodableImageError):
            raise error
        return image, error or future.result()

    with ThreadPoolExecutor(threads) as pool:
        for image in images:
            future = pool.submit(decode_and_crop, image.data, preprocess)
            waiting.append((image._replace(data=None), future))
            if len(waiting) > ahead:
                yield finish()
        while waiting:
            yield finish()


def _collect(
    spec: ResolvedSpec,
    series: list[tuple[str, str]],
    running: dict[tuple[str, str], RunningTopK],
    position: int,
) -> tuple[Scores, list[dict[str, object]]]:
    """Return the kept candidates, and the counts of activations that are not finite."""
    channels = {layer.name: np.array(layer.channels, dtype=np.int32) for layer in spec.layers}
    scores = []
    not_finite = []
    for number, (layer, statistic) in enumerate(series):
        place, activation, row, bad = (t.numpy() for t in running[layer, statistic].result())
        count = len(row)
        scores.append(
            Scores(
                series=np.full(count, number, dtype=np.int32),
                channel=channels[layer][place],
                activation=activation,
                shard=np.full(count, position, dtype=np.int32),
                row=row,
            )
        )
        not_finite += [
            {"layer": layer, "statistic": statistic, "channel": int(channels[layer][i]), "images": int(bad[i])}
            for i in np.flatnonzero(bad)
        ]
    return concatenate(scores), not_finite


def _too_many_skipped(shard: Shard, skipped: list[dict[str, object]], max_skipped: int) -> str:
    shown = "; ".join(f"row {s['row']}: {s['reason']}" for s in skipped[:_REASONS_IN_MESSAGE])
    more = f"; and {len(skipped) - _REASONS_IN_MESSAGE} more" if len(skipped) > _REASONS_IN_MESSAGE else ""
    return (
        f"{shard.name}: {len(skipped)} undecodable images, max_skipped is {max_skipped} ({shown}{more}); "
        f"repair the shard, or run again with --max-skipped {len(skipped)}"
    )
