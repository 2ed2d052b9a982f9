"""From a shard's rows to batches of crops on the device that scores them.

Decoding runs in threads, ahead of the network. On a GPU batches are put together in pinned memory and copied
on a stream of their own, beside the computing; with `decode: gpu` the GPU decodes them itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.data.decode import UndecodableImageError
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.preprocess import GPU_DECODER, Preprocess
from exemplar_ray.data.shard import ImageRow
from exemplar_ray.prefetch import map_ahead

# Batches that may be on their way to a GPU: one being filled, one being copied, one to spare.
_STAGED = 3
# nvJPEG's calls wait for the GPU; two at a time keep it busy.
_GPU_DECODING_THREADS = 2


@dataclass(frozen=True)
class Batch:
    """Rows that stand one after the other in a shard, ready to be scored."""

    crops: Tensor
    """uint8 [batch size, crop, crop, channels] on the device; zeros behind the last image. The next batch may
    overwrite it."""
    images: list[ImageRow]
    """What the crops are of, without the bytes."""
    undecodable: list[tuple[ImageRow, UndecodableImageError]]
    """Rows among these that have no crop, and why."""


def batches(
    images: Iterable[ImageRow],
    preprocess: Preprocess,
    batch_size: int,
    threads: int,
    device: torch.device,
    decoder: str = "reference",
    cuts: Sequence[int] = (),
) -> Iterator[Batch]:
    """Decode, crop and bring to the device; in order, every row in one batch.

    Args:
        threads: how many decode at the same time.
        decoder: see `preprocess.DECODERS`.
        cuts: rows, ascending, that a batch begins with.
    """
    if decoder == GPU_DECODER:
        yield from _decoded_on(device, _in_batches(images, batch_size, cuts), preprocess, batch_size)
        return
    staging = _Staging((batch_size, *preprocess.crop_shape), device)
    decoded = decode_ahead(images, preprocess, threads, 2 * batch_size, decoder)
    # What is decoded ahead may be of the next piece already.
    for _, of_piece in groupby(decoded, key=lambda one: bisect_right(cuts, one[0].row)):
        rows: list[ImageRow] = []
        undecodable: list[tuple[ImageRow, UndecodableImageError]] = []
        for image, pixels in of_piece:
            if isinstance(pixels, UndecodableImageError):
                undecodable.append((image, pixels))
                continue
            staging.put(len(rows), pixels)
            rows.append(image)
            if len(rows) == batch_size:
                yield Batch(staging.to_device(len(rows)), rows, undecodable)
                rows, undecodable = [], []
        if rows or undecodable:
            yield Batch(staging.to_device(len(rows)), rows, undecodable)


def _in_batches(images: Iterable[ImageRow], size: int, cuts: Sequence[int]) -> Iterator[tuple[ImageRow, ...]]:
    """Put images together in batches, of which one begins with each row of `cuts`."""
    for _, of_piece in groupby(images, key=lambda image: bisect_right(cuts, image.row)):
        while batch := tuple(islice(of_piece, size)):
            yield batch


def decode_ahead(
    images: Iterable[ImageRow], preprocess: Preprocess, threads: int, ahead: int, decoder: str = "reference"
) -> Iterator[tuple[ImageRow, np.ndarray | UndecodableImageError]]:
    """Decode and crop in threads, at most `ahead` images before the one being used.

    Yields:
        each row, in order, without its bytes, and its uint8 [crop, crop, channels] pixels or the
        reason why it has none.
    """

    decode_and_crop = decoder_of(decoder)

    def decoded(image: ImageRow) -> tuple[ImageRow, np.ndarray | UndecodableImageError]:
        try:
            return image._replace(data=None), decode_and_crop(image.data, preprocess)
        except UndecodableImageError as error:
            return image._replace(data=None), error

    return map_ahead(decoded, images, threads, ahead)


def _decoded_on(
    device: torch.device, batches_of_rows: Iterable[tuple[ImageRow, ...]], preprocess: Preprocess, batch_size: int
) -> Iterator[Batch]:
    """Decode on the device itself, a batch of rows at a time."""
    # torchvision takes as long to import as torch, and only this needs it.
    from exemplar_ray.data import decode_gpu as gpu_decoding

    def decoded(rows: tuple[ImageRow, ...]) -> Batch:
        decoded_images = gpu_decoding.decode_and_crop([image.data for image in rows], preprocess, device)
        crops = torch.zeros((batch_size, *preprocess.crop_shape), dtype=torch.uint8, device=device)
        kept: list[ImageRow] = []
        undecodable: list[tuple[ImageRow, UndecodableImageError]] = []
        for image, pixels in zip(rows, decoded_images, strict=True):
            image = image._replace(data=None)
            if isinstance(pixels, UndecodableImageError):
                undecodable.append((image, pixels))
                continue
            crops[len(kept)] = pixels
            kept.append(image)
        return Batch(crops, kept, undecodable)

    return map_ahead(decoded, batches_of_rows, _GPU_DECODING_THREADS, _GPU_DECODING_THREADS)


class _Staging:
    """Where batches are put together: plain memory for the CPU, pinned memory in turns for a GPU."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._memory = [
            torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
            for _ in range(_STAGED if self._on_gpu else 1)
        ]
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._copied = [torch.cuda.Event() for _ in self._memory]
        self._turn = 0

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Put an image at an index of the batch being filled."""
        if index == 0:
            self._wait()
        self._memory[self._turn].numpy()[index] = pixels

    def to_device(self, count: int) -> Tensor:
        """Return the batch on the device, its first `count` images; what is queued there next will wait for it."""
        self._wait()
        filled = self._memory[self._turn]
        filled[count:] = 0
        if not self._on_gpu:
            return filled
        with torch.cuda.stream(self._stream):
            crops = filled.to(self._device, non_blocking=True)
            self._copied[self._turn].record()
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(self._copied[self._turn])
        # Or its memory would be given to the next copy while the network still reads it.
        crops.record_stream(computing)
        self._turn = (self._turn + 1) % len(self._memory)
        return crops

    def _wait(self) -> None:
        """Wait until what this memory held before is on the GPU."""
        if self._on_gpu:
            self._copied[self._turn].synchronize()
