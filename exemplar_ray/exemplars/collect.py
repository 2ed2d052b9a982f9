"""From a shard's activations, batch by batch, to its part: running top-Ks, tallies, images to draw samples from.

A shard that falls into pieces (`data.pieces`) is collected piece by piece, each as if it were a shard, and these are
put together in order: so it makes no difference to a bit whether one worker collects them all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from exemplar_ray.data.shards import ImageRow
from exemplar_ray.exemplars.collected import Collected
from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.running_topk import RunningTopK
from exemplar_ray.exemplars.samples import SampledImages, priority
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.spec import ExemplarsSpec, Readout
from exemplar_ray.exemplars.topk import (
    BOTTOM,
    NEAR_ZERO,
    NO_LABEL,
    OF_CLASS,
    TOP,
    Scores,
    concatenate,
    has_label,
    merge,
)
from exemplar_ray.network.trunk import OfReadouts, Pooled

ROWS_PER_BLOCK = 1024


class PartCollector:
    """Takes in activations, and works through them a block of rows at a time.

    So memory holds only so many rows, and the device is waited for once a block, in a thread of its own, while it
    scores the next block. The running top-Ks stay on the device. What needs none is done on the CPU: tallies, the
    strongest of each class, the activations of the images that samples are drawn from.

    Args:
        settings: of the scan.
        position: the shard's place in the sorted shard list.
        device: where activations come from.
        cuts: the rows that pieces begin with, see `ShardReader.cuts`; no batch has images of two.
    """

    def __init__(self, settings: ScanSettings, position: int, device: torch.device, cuts: Sequence[int] = ()) -> None:
        spec = settings.spec
        self._spec = spec
        self._position = position
        self._sample_rate = settings.sample_rate
        self._device = device
        self._cuts = cuts
        self._piece: int | None = None
        self._rankings = RunningRankings(spec, device)
        self._part = Part.empty(spec)
        self._before: Collected | None = None
        self._waiting: list[Pooled] = []
        self._labels: list[int] = []
        self._rows: list[int] = []
        self._priorities: dict[int, float] = {}
        self._thread = ThreadPoolExecutor(1)
        self._block: Future[None] | None = None

    def __enter__(self) -> PartCollector:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def prioritise(self, images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        """Note the priorities of images on their way to the decoder, while their bytes are there."""
        for image in images:
            if image.data is not None:
                drawn_at = priority(self._spec.seed, image.data)
                if drawn_at < self._sample_rate:
                    self._priorities[image.row] = drawn_at
            yield image

    def add(self, pooled: Pooled, images: list[ImageRow]) -> None:
        """Take in a batch's activations, of whose rows the first are these images'."""
        count, piece = len(images), bisect_right(self._cuts, images[0].row)
        if self._piece not in (None, piece):
            self._pass_on(ends_piece=True)
        self._piece = piece
        self._waiting.append(Pooled(*({key: values[:count] for key, values in part.items()} for part in pooled)))
        # Data sets without labels, such as test sets, often say -1.
        self._labels += [NO_LABEL if image.label is None or image.label < 0 else image.label for image in images]
        self._rows += [image.row for image in images]
        if len(self._rows) >= ROWS_PER_BLOCK:
            self._pass_on()

    def result(self) -> Collected:
        """Return what there is, of all pieces."""
        self._pass_on(ends_piece=True)
        self._wait()
        assert self._before is not None
        return self._before

    def _end_piece(self) -> None:
        """Put a piece together with those before it, and begin the next one."""
        scores = [self._rankings.scores(self._position), self._part.scores]
        part = replace(self._part, scores=merge(scores, candidates_kept(self._spec)))
        piece = Collected(part, self._rankings.not_finite)
        self._before = piece if self._before is None else self._before.joined(piece, self._spec)
        self._rankings, self._part = RunningRankings(self._spec, self._device), Part.empty(self._spec)

    def _pass_on(self, ends_piece: bool = False) -> None:
        """Give what is waiting to the thread, one block at a time.

        Args:
            ends_piece: what follows is of another piece.
        """
        self._wait()
        block: Pooled | None = None
        if self._rows:
            block = Pooled(*(_joined([pooled[i] for pooled in self._waiting]) for i in range(2)))
        if block is not None or ends_piece:
            labels, rows = np.array(self._labels, np.int64), np.array(self._rows, np.int64)
            self._block = self._thread.submit(self._work_through, block, labels, rows, ends_piece)
        self._waiting, self._labels, self._rows = [], [], []

    def _wait(self) -> None:
        """Wait for the block that the thread has, if it has one."""
        if self._block is not None:
            self._block.result()
            self._block = None

    @torch.inference_mode()
    def _work_through(self, block: Pooled | None, labels: np.ndarray, rows: np.ndarray, ends_piece: bool) -> None:
        if block is not None:
            self._take_in(block, labels, rows)
        if ends_piece:
            self._end_piece()

    def _take_in(self, block: Pooled, labels: np.ndarray, rows: np.ndarray) -> None:
        self._rankings.update(block, torch.from_numpy(rows).to(self._device))
        activations = [block.activations[readout.key].cpu().numpy() for readout in self._spec.readouts]
        for number, of_readout in enumerate(activations):
            for tallies in self._part.tallies.values():
                tallies[number].update(of_readout, labels)
        scores = self._part.scores
        if self._spec.class_top_k:
            scores = merge([scores, *self._of_classes(activations, labels, rows)], candidates_kept(self._spec))
        sampled = SampledImages.join([self._part.sampled, self._to_draw_from(activations, rows)])
        self._part = replace(self._part, scores=scores, sampled=sampled)

    def _of_classes(self, activations: list[np.ndarray], labels: np.ndarray, rows: np.ndarray) -> Iterator[Scores]:
        """Yield the strongest images of each class for every channel, one readout after another."""
        for number, ((layer, _), of_readout) in enumerate(zip(self._spec.readouts, activations, strict=True)):
            image, channel = np.nonzero(np.isfinite(of_readout) & has_label(labels)[:, None])
            count = len(image)
            candidates = Scores(
                readout=np.full(count, number, np.int32),
                ranking=np.full(count, OF_CLASS, np.int8),
                label=labels[image],
                channel=np.array(layer.channels, np.int32)[channel],
                activation=of_readout[image, channel],
                shard=np.full(count, self._position, np.int32),
                row=rows[image],
            )
            yield merge([candidates], candidates_kept(self._spec))

    def _to_draw_from(self, activations: list[np.ndarray], rows: np.ndarray) -> SampledImages:
        """Return the images that a sample may draw, if the run draws any."""
        chosen = np.array([row in self._priorities for row in rows.tolist()], bool)
        return SampledImages(
            shard=np.full(int(chosen.sum()), self._position, np.int32),
            row=rows[chosen],
            priority=np.array([self._priorities[row] for row in rows[chosen].tolist()], np.float64),
            activations=[of_readout[chosen] for of_readout in activations],
        )


def _joined(batches: list[OfReadouts]) -> OfReadouts:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


class RunningRankings:
    """The running top-Ks of a shard: of every readout the strongest, the weakest, and those near to 0, as wanted."""

    def __init__(self, spec: ExemplarsSpec, device: torch.device) -> None:
        kept = candidates_kept(spec)
        self._readouts = spec.readouts
        self._running = {
            (readout.key, ranking): RunningTopK(len(readout.layer.channels), kept[ranking], device)
            for readout in self._readouts
            for ranking in (TOP, BOTTOM, NEAR_ZERO)
            if ranking in kept
        }

    def update(self, block: Pooled, rows: torch.Tensor) -> None:
        """Take in a block: its activations, and the int64 [images] rows they are of, on the device."""
        for (key, ranking), running in self._running.items():
            values = block.activations[key]
            if ranking == BOTTOM:
                values = -values
            elif ranking == NEAR_ZERO:
                # Of the images that leave the channel at 0: not a number is not ranked.
                values = torch.where(values == 0, block.pre_relu[key], torch.nan)
            running.update(values, rows)

    def scores(self, shard: int) -> Scores:
        """Return the kept candidates."""
        scores = []
        for number, readout in enumerate(self._readouts):
            strongest = self._kept(number, readout, TOP, shard)
            scores.append(strongest)
            if (readout.key, NEAR_ZERO) in self._running:
                # Only where the strongest go down to 0: elsewhere no image at 0 is near to being one of them.
                nearest = self._kept(number, readout, NEAR_ZERO, shard)
                down_to_0 = strongest.channel[strongest.activation == 0]
                scores.append(nearest.take(np.isin(nearest.channel, down_to_0)))
            if (readout.key, BOTTOM) in self._running:
                weakest = self._kept(number, readout, BOTTOM, shard)
                # They were ranked by the negated activation.
                scores.append(weakest._replace(activation=-weakest.activation))
        return concatenate(scores)

    @property
    def not_finite(self) -> list[np.ndarray]:
        """Return how many activations are not finite, of each readout: int64 [channels]."""
        return [self._running[readout.key, TOP].not_finite.numpy() for readout in self._readouts]

    def _kept(self, number: int, readout: Readout, ranking: int, shard: int) -> Scores:
        channel, value, row = (tensor.numpy() for tensor in self._running[readout.key, ranking].result())
        return Scores(
            readout=np.full(len(row), number, np.int32),
            ranking=np.full(len(row), ranking, np.int8),
            label=np.full(len(row), NO_LABEL, np.int64),
            channel=np.array(readout.layer.channels, np.int32)[channel],
            activation=value,
            shard=np.full(len(row), shard, np.int32),
            row=row,
        )
