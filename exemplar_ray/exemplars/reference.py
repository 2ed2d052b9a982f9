"""The reference computation: what an image's numbers are, whatever a scan saw of it. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.shard import ImageRow
from exemplar_ray.exemplars.near_duplicates import perceptual_hash
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import Pooled, Trunk

# One image at a time, one thread, on the CPU. Convolutions round differently with other shapes and thread counts;
# fixing them makes the result the same on a laptop and on a cluster, whatever the scan ran on. Batches would gain a
# twentieth.
REFERENCE_THREADS = 1

# What is remembered of images, for their copies.
_MOST_BYTES = 64 << 20


class Answer(NamedTuple):
    """What the network says of one image."""

    hash: bytes
    """See `near_duplicates.perceptual_hash`."""
    pooled: Pooled
    outputs: dict[str, Tensor]
    """See `Trunk.with_maps`."""

    @property
    def size(self) -> int:
        """Return how many bytes it takes, about."""
        return sum(output.nbytes for output in self.outputs.values())


@dataclass(frozen=True)
class Prepared:
    """An image on its way to the network."""

    image: ImageRow
    """Without its bytes, but where they are not decoded yet."""
    content: bytes
    """Equal for images of equal bytes."""
    pixels: np.ndarray | None
    """uint8 [crop, crop, channels]; None where the network has answered of the same bytes."""


class Reference:
    """Asks a network about images, one at a time; about copies of an image once, if they come soon enough.

    Args:
        trunk: on the CPU.
        network: which network it is of.
    """

    def __init__(self, trunk: Trunk, network: NetworkSpec) -> None:
        self.trunk = trunk
        self._network = network
        self._known: OrderedDict[tuple[bytes, int | None], Answer] = OrderedDict()
        self._bytes = 0

    def prepare(self, image: ImageRow) -> Prepared | UndecodableImageError:
        """Decode and crop an image that is not known; this may run in a thread."""
        content = hashlib.sha256(image.data or b"").digest()
        if self._key(content, image) in self._known:
            return Prepared(image, content, None)
        try:
            return Prepared(image._replace(data=None), content, decode_and_crop(image.data, self._network.preprocess))
        except UndecodableImageError as error:
            return error

    def answer(self, shard: str, prepared: Prepared, pre_relu: bool) -> Answer:
        """Return what the network says of an image.

        Args:
            shard: the name of its shard.
            pre_relu: also what it comes to before the ReLU, see `Trunk.with_maps`.

        Raises:
            ShardError: it lacks a label that the network is given.
        """
        image, key = prepared.image, self._key(prepared.content, prepared.image)
        known = self._known.get(key)
        if known is not None and (known.pooled.pre_relu or not pre_relu):
            return known
        pixels = prepared.pixels
        if pixels is None:
            # It has been forgotten since, or less was asked of it.
            pixels = decode_and_crop(image.data, self._network.preprocess)
        labels = labels_for(self._network, shard, [image], 1)
        answer = Answer(
            known.hash if known else perceptual_hash(pixels),
            *self.trunk.with_maps(torch.tensor(pixels[None]), labels, pre_relu=pre_relu),
        )
        self._remember(key, answer)
        return answer

    def _key(self, content: bytes, image: ImageRow) -> tuple[bytes, int | None]:
        return content, image.label if self._network.takes_labels else None

    def _remember(self, key: tuple[bytes, int | None], answer: Answer) -> None:
        if key in self._known:
            self._bytes -= self._known.pop(key).size
        self._known[key] = answer
        self._bytes += answer.size
        while self._bytes > _MOST_BYTES and len(self._known) > 1:
            self._bytes -= self._known.popitem(last=False)[1].size
