"""Scan: one shard of images -> one part. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from exemplar_ray.activations import Trunk
from exemplar_ray.batches import batches
from exemplar_ray.compiled import CompiledTrunk
from exemplar_ray.errors import ShardError
from exemplar_ray.parts import Part, before_relu, candidate_series, candidates_kept, layers_and_statistics, series_of
from exemplar_ray.running_topk import RunningTopK
from exemplar_ray.samples import SampledImages, priority
from exemplar_ray.shards import ImageRow, Shard, ShardReader
from exemplar_ray.spec import ResolvedSpec
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
    skipped: list[dict[str, object]] = []
    scored = 0
    with ShardReader(shard) as reader, _Collecting(spec, position, sample_rate, trunk.device) as collecting:
        images = islice(reader.images(), most_rows)
        images = collecting.prioritise(images) if spec.drawn_samples else images
        for batch in batches(images, spec.preprocess, batch_size, decode_threads, trunk.device, spec.decode):
            skipped += [{"row": image.row, "reason": str(reason)} for image, reason in batch.undecodable]
            # A shard that has failed is read to its end, so that the message can name every
            # bad image, but nothing more is computed for it.
            if len(skipped) > max_skipped or not batch.images:
                continue
            scored += len(batch.images)
            collecting.add(trunk(batch.crops), batch.images)
        rows = reader.rows if most_rows is None else min(reader.rows, most_rows)
        if len(skipped) > max_skipped:
            raise ShardError(_too_many_skipped(shard, skipped, max_skipped))
        part, not_finite = collecting.result()
    if rows != scored + len(skipped):
        raise ShardError(f"{shard.name}: {rows} rows, but {scored} scored and {len(skipped)} skipped")
    return ScannedShard(part, rows, scored, skipped, not_finite)


class _Collecting:
    """Takes in activations, and works through them a block of rows at a time: memory for only so many rows, and
    the device waited for once a block, in a thread of its own, while it scores the next.

    The running top-K stays on the device; what needs none is done on the CPU: tallies, the strongest of each class,
    the activations of the images that samples are drawn from.
    """

    def __init__(self, spec: ResolvedSpec, position: int, sample_rate: float, device: torch.device) -> None:
        self._spec = spec
        self._position = position
        self._sample_rate = sample_rate
        self._device = device
        self._strongest = _running(spec, TOP, device)
        self._weakest = _running(spec, BOTTOM, device)
        self._nearest = _running(spec, TOP, device) if spec.screened else {}
        self._part = Part.empty(spec)
        self._waiting: dict[tuple[str, str], list[torch.Tensor]] = {key: [] for key in candidate_series(spec)}
        self._labels: list[int] = []
        self._rows: list[int] = []
        self._priorities: dict[int, float] = {}
        self._thread = ThreadPoolExecutor(1)
        self._block: Future[None] | None = None

    def __enter__(self) -> _Collecting:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def prioritise(self, images: Iterable[ImageRow]) -> Iterator[ImageRow]:
        """Note the priorities of images on their way to the decoder, while their bytes are there."""
        for image in images:
            if image.data is not None:
                one = priority(self._spec.seed, image.data)
                if one < self._sample_rate:
                    self._priorities[image.row] = one
            yield image

    def add(self, pooled: dict[tuple[str, str], torch.Tensor], images: list[ImageRow]) -> None:
        """Take in a batch's activations, of whose rows the first are these images'."""
        for key, values in pooled.items():
            self._waiting[key].append(values[: len(images)])
        self._labels += [NO_LABEL if image.label is None else image.label for image in images]
        self._rows += [image.row for image in images]
        if len(self._rows) >= ROWS_PER_BLOCK:
            self._pass_on()

    def result(self) -> tuple[Part, list[dict[str, object]]]:
        """Return the part, and the counts of activations that are not finite."""
        self._pass_on()
        self._wait()
        scores, not_finite = _collect(self._spec, self._strongest, self._weakest, self._nearest, self._position)
        part = replace(self._part, scores=merge([scores, self._part.scores], candidates_kept(self._spec)))
        return part, not_finite

    def _pass_on(self) -> None:
        """Give what is waiting to the thread, one block at a time."""
        self._wait()
        if self._rows:
            block = {key: torch.cat(values) for key, values in self._waiting.items()}
            labels, rows = np.array(self._labels, np.int64), np.array(self._rows, np.int64)
            self._block = self._thread.submit(self._work_through, block, labels, rows)
        self._waiting = {key: [] for key in self._waiting}
        self._labels, self._rows = [], []

    def _wait(self) -> None:
        """Wait for the block that the thread has, if it has one."""
        if self._block is not None:
            self._block.result()
            self._block = None

    @torch.inference_mode()
    def _work_through(
        self, activations: dict[tuple[str, str], torch.Tensor], labels: np.ndarray, rows: np.ndarray
    ) -> None:
        rows_there = torch.from_numpy(rows).to(self._device)
        series = series_of(self._spec)
        for layer, statistic in series:
            values = activations[layer, statistic]
            self._strongest[layer, statistic].update(values, rows_there)
            if self._weakest:
                self._weakest[layer, statistic].update(-values, rows_there)
            if self._nearest:
                # Of the images that leave the channel at 0: not a number is not ranked.
                near = torch.where(values == 0, activations[layer, before_relu(statistic)], torch.nan)
                self._nearest[layer, statistic].update(near, rows_there)
        blocks = [activations[key].cpu().numpy() for key in series]
        for number, block in enumerate(blocks):
            for tallies in self._part.tallies.values():
                tallies[number].update(block, labels)
        scores = self._part.scores
        if self._spec.class_top_k:
            scores = merge([scores, *self._of_classes(blocks, labels, rows)], candidates_kept(self._spec))
        sampled = SampledImages.together([self._part.sampled, self._to_draw_from(blocks, rows)])
        self._part = Part(scores, self._part.tallies, sampled)

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


def _running(spec: ResolvedSpec, contest: int, device: torch.device) -> dict[tuple[str, str], RunningTopK]:
    """Return a running top-K for each (layer, statistic), or none if the contest is not wanted."""
    keep = candidates_kept(spec).get(contest)
    return {
        (layer.name, statistic): RunningTopK(len(layer.channels), keep, device)
        for layer, statistic in layers_and_statistics(spec)
        if keep
    }


def _collect(
    spec: ResolvedSpec,
    strongest: dict[tuple[str, str], RunningTopK],
    weakest: dict[tuple[str, str], RunningTopK],
    nearest: dict[tuple[str, str], RunningTopK],
    position: int,
) -> tuple[Scores, list[dict[str, object]]]:
    """Return the kept candidates, and the counts of activations that are not finite."""
    scores = []
    not_finite = []
    pairs = layers_and_statistics(spec)

    def as_scores(series: int, contest: int, channel: np.ndarray, activation: np.ndarray, row: np.ndarray) -> Scores:
        return Scores(
            series=np.full(len(row), series, dtype=np.int32),
            contest=np.full(len(row), contest, dtype=np.int8),
            label=np.full(len(row), NO_LABEL, dtype=np.int64),
            channel=channel,
            activation=activation,
            shard=np.full(len(row), position, dtype=np.int32),
            row=row,
        )

    for number, (layer, statistic) in enumerate(pairs):
        key = (layer.name, statistic)
        channels = np.array(layer.channels, dtype=np.int32)
        place, activation, row, bad = (t.numpy() for t in strongest[key].result())
        scores.append(as_scores(number, TOP, channels[place], activation, row))
        not_finite += [
            {"layer": layer.name, "statistic": statistic, "channel": int(channels[i]), "images": int(bad[i])}
            for i in np.flatnonzero(bad)
        ]
        if nearest:
            # Only where the strongest go down to 0: elsewhere no image at 0 is near to being one of them.
            down_to_0 = np.isin(np.arange(len(channels)), place[activation == 0])
            place, activation, row, _ = (t.numpy() for t in nearest[key].result())
            near = down_to_0[place]
            scores.append(as_scores(len(pairs) + number, TOP, channels[place[near]], activation[near], row[near]))
        if weakest:
            place, activation, row, _ = (t.numpy() for t in weakest[key].result())
            # They were ranked by the negated activation.
            scores.append(as_scores(number, BOTTOM, channels[place], -activation, row))
    return concatenate(scores), not_finite


def _too_many_skipped(shard: Shard, skipped: list[dict[str, object]], max_skipped: int) -> str:
    shown = "; ".join(f"row {s['row']}: {s['reason']}" for s in skipped[:_REASONS_IN_MESSAGE])
    more = f"; and {len(skipped) - _REASONS_IN_MESSAGE} more" if len(skipped) > _REASONS_IN_MESSAGE else ""
    return (
        f"{shard.name}: {len(skipped)} undecodable images, max_skipped is {max_skipped} ({shown}{more}); "
        f"repair the shard, or run again with --max-skipped {len(skipped)}"
    )
