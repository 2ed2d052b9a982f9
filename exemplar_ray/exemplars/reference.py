"""The reference computation: what an image's numbers are, whatever a scan saw of it. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.data.batches import Batch
from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.shard import ImageRow
from exemplar_ray.exemplars.gathered import MOST_REMEMBERED_BYTES
from exemplar_ray.exemplars.near_duplicates import perceptual_hash
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.shard_images import Prepare
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import Pooled, Trunk

# One image at a time, one thread, on the CPU. Convolutions round differently with other shapes and thread counts;
# fixing them makes the result the same on a laptop and on a cluster, whatever the scan ran on. Batches would gain a
# twentieth.
REFERENCE_THREADS = 1

OfReadouts = dict[tuple[str, str], np.ndarray]
"""{(layer, statistic): float32 [wanted channels]}"""


class Answer(NamedTuple):
    """What the network says of one image."""

    hash: bytes
    """See `near_duplicates.perceptual_hash`."""
    activations: OfReadouts
    pre_relu: OfReadouts
    """Empty where that was not asked for, see `trunk.Pooled`."""
    maps: dict[str, np.ndarray]
    """{layer: float32 [wanted channels, height, width], or [wanted channels] of logits}"""

    @classmethod
    def of(cls, pixels: np.ndarray, pooled: Pooled, outputs: dict[str, Tensor]) -> Answer:
        """Take what `Trunk.with_maps` returned of one image.

        Args:
            pixels: uint8 [crop, crop, channels], what it was asked about.
        """
        activations, pre_relu = ({key: values.numpy()[0] for key, values in part.items()} for part in pooled)
        maps = {layer: output.numpy()[0] for layer, output in outputs.items()}
        return cls(perceptual_hash(pixels), activations, pre_relu, maps)

    @property
    def size(self) -> int:
        """Return how many bytes it takes, about."""
        return sum(maps.nbytes for maps in self.maps.values())


@dataclass(frozen=True)
class Prepared:
    """An image on its way to the network."""

    image: ImageRow
    """Without its bytes, but where they are not decoded yet."""
    content: bytes
    """Equal for images of equal bytes."""
    pixels: np.ndarray | None
    """uint8 [crop, crop, channels]; None where the network has answered of the same bytes."""


Key = tuple[bytes, int | None]
"""What a network is asked about: the SHA-256 of an image's bytes, and the label, if it is given that."""


def content_of(image: ImageRow) -> bytes:
    """Return what is equal for images of equal bytes: their SHA-256."""
    return hashlib.sha256(image.data or b"").digest()


def key_of(network: NetworkSpec, content: bytes, image: ImageRow) -> Key:
    """Return what a network is asked about where it is asked about an image."""
    return content, image.label if network.takes_labels else None


class Reference:
    """Asks a network about images, one at a time; about copies of an image once, if they come soon enough.

    Args:
        trunk: on the CPU.
        network: which network it is of.
        answers: what it has said of some images already; None where nobody has kept that.
    """

    def __init__(self, trunk: Trunk, network: NetworkSpec, answers: Iterable[Mapping[Key, Answer] | None] = ()) -> None:
        self._trunk = trunk
        self._network = network
        self._given = {key: answer for some in answers for key, answer in (some or {}).items()}
        self._known: OrderedDict[Key, Answer] = OrderedDict()
        self._bytes = 0

    def prepare(self, image: ImageRow) -> Prepared | UndecodableImageError:
        """Decode and crop an image that is not known; this may run in a thread."""
        content = content_of(image)
        if self._answered(key_of(self._network, content, image)) is not None:
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
        image, key = prepared.image, key_of(self._network, prepared.content, prepared.image)
        known = self._answered(key)
        if known is not None and (known.pre_relu or not pre_relu):
            return known
        pixels = prepared.pixels
        if pixels is None:
            # It has been forgotten since, or less was asked of it.
            pixels = decode_and_crop(image.data, self._network.preprocess)
        labels = labels_for(self._network, shard, [image], 1)
        answer = Answer.of(pixels, *self._trunk.with_maps(torch.tensor(pixels[None]), labels, pre_relu=pre_relu))
        self._remember(key, answer)
        return answer

    @property
    def remembered(self) -> Mapping[Key, Answer]:
        """Return what it was told itself, and has not forgotten."""
        return dict(self._known)

    def _answered(self, key: Key) -> Answer | None:
        return self._known.get(key) or self._given.get(key)

    def _remember(self, key: Key, answer: Answer) -> None:
        if key in self._known:
            self._bytes -= self._known.pop(key).size
        self._known[key] = answer
        self._bytes += answer.size
        while self._bytes > MOST_REMEMBERED_BYTES and len(self._known) > 1:
            self._bytes -= self._known.popitem(last=False)[1].size


class Answers:
    """Scans by the reference: what the network says of each image is kept, for whoever asks again.

    `by_content` is {what it was asked about: what it said}.
    """

    def __init__(self, network: NetworkSpec) -> None:
        self._network = network
        self._contents: dict[int, bytes] = {}
        self.by_content: dict[Key, Answer] = {}

    def noting(self, prepare: Prepare) -> Prepare:
        """Have images noted on their way to the decoder, while their bytes are there."""

        def noted(images: Iterable[ImageRow]) -> Iterator[ImageRow]:
            for image in prepare(images):
                self._contents[image.row] = content_of(image)
                yield image

        return noted

    def ask(self, trunk: Trunk, batch: Batch, labels: Tensor | None) -> Pooled:
        """Score a batch of one image.

        Args:
            trunk: of `ExemplarsSpec.reference_trunk`, on the CPU.
        """
        pooled, outputs = trunk.with_maps(batch.crops, labels)
        [image] = batch.images
        key = key_of(self._network, self._contents.pop(image.row), image)
        self.by_content[key] = Answer.of(batch.crops.numpy()[0], pooled, outputs)
        return pooled
