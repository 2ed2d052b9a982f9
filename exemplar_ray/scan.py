"""Scan: one shard of images -> one part. Knows nothing of Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.compiled import CompiledTrunk
from exemplar_ray.errors import ShardError
from exemplar_ray.images import UndecodableImageError, decode_and_crop
from exemplar_ray.parts import Part, candidates_kept, layers_and_statistics, series_of
from exemplar_ray.running_topk import RunningTopK
from exemplar_ray.samples import SampledImages, priority
from exemplar_ray.shards import ImageRow, Shard, ShardReader
from exemplar_ray.spec import Preprocess, ResolvedSpec
from exemplar_ray.topk import BOTTOM, NO_LABEL, OF_CLASS, TOP, Scores, concatenate, merge

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
    trunk: Trunk | CompiledTrunk,
    spec: ResolvedSpec,
    shard: Shard,
    position: int,
    *,
    batch_size: int,
    decode_threads: int,
    max_skipped: int,
    sample_rate: float = 0.0,
    most_rows: int | None = None,
) -> ScannedShard:
    """Score every image of a shard and keep each channel's best candidates.

    Every forward pass has the same batch shape (the last batch is padded), so an image's
    activation does not depend on how many images were left over.

    Args:
        position: the shard's place in the sorted shard list.
        sample_rate: see `samples.sample_rate`; 0 where no sample is drawn.
        most_rows: read only so many, to see how long that takes.

    Raises:
        ShardError: more than `max_skipped` images cannot be decoded, the rows do not add up,
            or the file is not the listed one.
    """
    strongest = _running(spec, trunk, TOP)
    weakest = _running(spec, trunk, BOTTOM)
    skipped: list[dict[str, object]] = []
    scored = 0
    tallying = _Tallying(spec, position, sample_rate)

    def score(crops: torch.Tensor, batch: list[ImageRow]) -> None:
        rows = torch.tensor([image.row for image in batch], device=trunk.device)
        pooled = {key: values[: len(batch)] for key, values in trunk(crops).items()}
        for key, values in pooled.items():
            strongest[key].update(values, rows)
            if key in weakest:
                weakest[key].update(-values, rows)
        tallying.add(pooled, batch)

    size = spec.preprocess.crop
    crops = torch.zeros((batch_size, size, size, 3), dtype=torch.uint8)
    batch: list[ImageRow] = []
    with ShardReader(shard) as reader:
        images = islice(reader.images(), most_rows)
        images = tallying.prioritise(images) if spec.drawn_samples else images
        decoded = decode_ahead(images, spec.preprocess, decode_threads, 2 * batch_size, spec.decode)
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
        rows = reader.rows if most_rows is None else min(reader.rows, most_rows)
    if len(skipped) > max_skipped:
        raise ShardError(_too_many_skipped(shard, skipped, max_skipped))
    if batch:
        crops[len(batch) :] = 0
        score(crops, batch)
    if rows != scored + len(skipped):
        raise ShardError(f"{shard.name}: {rows} rows, but {scored} scored and {len(skipped)} skipped")
    scores, not_finite = _collect(spec, strongest, weakest, position)
    part = tallying.finish()
    part = replace(part, scores=merge([scores, part.scores], candidates_kept(spec)))
    return ScannedShard(part, rows, scored, skipped, not_finite)


class _Tallying:
    """Gathers activations on the device and works through them on the CPU, a block of rows at a time:
    one copy a block, not one a batch, and memory for only so many rows.

    Does what needs no device: tallies, the strongest of each class, the activations of the images
    that samples are drawn from.
    """

    def __init__(self, spec: ResolvedSpec, position: int, sample_rate: float) -> None:
        self._spec = spec
        self._position = position
        self._sample_rate = sample_rate
        self._part = Part.empty(spec)
        self._waiting: dict[tuple[str, str], list[torch.Tensor]] = {key: [] for key in series_of(spec)}
        self._labels: list[int] = []
        self._rows: list[int] = []
        self._priorities: dict[int, float] = {}

    def prioritise(self, images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        """Note the priorities of images on their way to the decoder, while their bytes are there."""
        for image in images:
            if image.data is not None:
                one = priority(self._spec.seed, image.data)
                if one < self._sample_rate:
                    self._priorities[image.row] = one
            yield image

    def add(self, pooled: dict[tuple[str, str], torch.Tensor], batch: list[ImageRow]) -> None:
        """Take in a batch's activations, image for image."""
        for key, values in pooled.items():
            self._waiting[key].append(values)
        self._labels += [NO_LABEL if image.label is None else image.label for image in batch]
        self._rows += [image.row for image in batch]
        if len(self._rows) >= ROWS_PER_BLOCK:
            self.finish()

    def finish(self) -> Part:
        """Work through what is waiting; return the part so far, without the candidates of channels."""
        if not self._rows:
            return self._part
        labels, rows = np.array(self._labels, np.int64), np.array(self._rows, np.int64)
        blocks = [torch.cat(values).cpu().numpy() for values in self._waiting.values()]
        for number, block in enumerate(blocks):
            for tallies in self._part.tallies.values():
                tallies[number].update(block, labels)
        scores = self._part.scores
        if self._spec.class_top_k:
            scores = merge([scores, *self._of_classes(blocks, labels, rows)], candidates_kept(self._spec))
        sampled = SampledImages.together([self._part.sampled, self._to_draw_from(blocks, rows)])
        self._part = Part(scores, self._part.tallies, sampled)
        self._waiting = {key: [] for key in self._waiting}
        self._labels, self._rows = [], []
        return self._part

    def _of_classes(self, blocks: list[np.ndarray], labels: np.ndarray, rows: np.ndarray) -> Iterator[Scores]:
        """Yield the strongest images of each class for every channel, one series after another."""
        for number, ((layer, _), block) in enumerate(zip(layers_and_statistics(self._spec), blocks, strict=True)):
            image, channel = np.nonzero(np.isfinite(block) & (labels != NO_LABEL)[:, None])
            count = len(image)
            candidates = Scores(
                series=np.full(count, number, np.int32),
                contest=np.full(count, OF_CLASS, np.int8),
                label=labels[image],
                channel=np.array(layer.channels, np.int32)[channel],
                activation=block[image, channel],
                shard=np.full(count, self._position, np.int32),
                row=rows[image],
            )
            yield merge([candidates], candidates_kept(self._spec))

    def _to_draw_from(self, blocks: list[np.ndarray], rows: np.ndarray) -> SampledImages:
        """Return the images that a sample may draw, if the run draws any."""
        chosen = np.array([row in self._priorities for row in rows.tolist()], bool)
        return SampledImages(
            shard=np.full(int(chosen.sum()), self._position, np.int32),
            row=rows[chosen],
            priority=np.array([self._priorities[row] for row in rows[chosen].tolist()], np.float64),
            activations=[block[chosen] for block in blocks],
        )


def decode_ahead(
    images: Iterable[ImageRow], preprocess: Preprocess, threads: int, ahead: int, decoder: str = "reference"
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
            future = pool.submit(decode_and_crop, image.data, preprocess, decoder)
            waiting.append((image._replace(data=None), future))
            if len(waiting) > ahead:
                yield finish()
        while waiting:
            yield finish()


def _running(spec: ResolvedSpec, trunk: Trunk | CompiledTrunk, contest: int) -> dict[tuple[str, str], RunningTopK]:
    """Return a running top-K for each (layer, statistic), or none if the contest is not wanted."""
    keep = candidates_kept(spec).get(contest)
    return {
        (layer.name, statistic): RunningTopK(len(layer.channels), keep, trunk.device)
        for layer, statistic in layers_and_statistics(spec)
        if keep
    }


def _collect(
    spec: ResolvedSpec,
    strongest: dict[tuple[str, str], RunningTopK],
    weakest: dict[tuple[str, str], RunningTopK],
    position: int,
) -> tuple[Scores, list[dict[str, object]]]:
    """Return the kept candidates, and the counts of activations that are not finite."""
    scores = []
    not_finite = []
    for number, (layer, statistic) in enumerate(layers_and_statistics(spec)):
        channels = np.array(layer.channels, dtype=np.int32)
        for contest, running in ((TOP, strongest), (BOTTOM, weakest)):
            if not running:
                continue
            place, activation, row, bad = (t.numpy() for t in running[layer.name, statistic].result())
            count = len(row)
            scores.append(
                Scores(
                    series=np.full(count, number, dtype=np.int32),
                    contest=np.full(count, contest, dtype=np.int8),
                    label=np.full(count, NO_LABEL, dtype=np.int64),
                    channel=channels[place],
                    # The weakest were ranked by the negated activation.
                    activation=-activation if contest == BOTTOM else activation,
                    shard=np.full(count, position, dtype=np.int32),
                    row=row,
                )
            )
            if contest == TOP:
                not_finite += [
                    {"layer": layer.name, "statistic": statistic, "channel": int(channels[i]), "images": int(bad[i])}
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
