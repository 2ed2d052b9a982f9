"""The natural images that a layer's pictures are held against, as the network sees them: a channel's exemplars, and
some that other channels answer to.

Of each the part is looked at that is as large as the pictures, around the place where the channel answers most: what
lies beyond an image's edge counts for more in a small one. An image's numbers are a function of the image alone: each
goes through the network by itself, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.errors import ShardError
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.loading import network_of
from exemplar_ray.network.passages import passages
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import ContiguousTrunk, Trunk
from exemplar_ray.runs.ranked import RankedImage, of_others, strongest
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.visualize.describe import Description, describe
from exemplar_ray.visualize.facets import Facet, facets
from exemplar_ray.visualize.path import Path, paths
from exemplar_ray.visualize.starts import as_start

# So many of a channel's exemplars, and of other images, a picture's path is held against; so many are described; and
# among so many facets are found.
_COMPARED, _DESCRIBED, _CLUSTERED = 10, 5, 100
_KEPT_CHANNELS = 32


@dataclass(frozen=True, eq=False)
class NaturalImage:
    """A natural image."""

    place: tuple[str, int]
    """Its shard and row."""
    crop: np.ndarray
    """What the network saw of it: uint8 [crop, crop, colours]."""
    part: np.ndarray
    """Of that, uint8 [size, size, colours]."""
    profile: list[np.ndarray]
    """Of each passage, how much its channels answer to the part, on average over their maps: float64 [channels]."""


def part_around(crop: np.ndarray, peak: tuple[float, float], size: int) -> np.ndarray:
    """Return the part of a crop, uint8 [size, size, colours], whose middle is as near to a place as can be.

    Args:
        crop: uint8 [crop, crop, colours]; where it is smaller than the part, it is returned as it is.
        peak: the place, from the top and from the left, 0..1.
    """
    room = max(len(crop) - size, 0)
    top, left = (int(np.clip(round(at * len(crop) - size / 2), 0, room)) for at in peak)
    return crop[top : top + size, left : left + size]


class NaturalImages:
    """What natural images do in the layers before one.

    Args:
        spec: the run's network.
        layer: the layer that pictures are made of.
        statistic: by which the run's exemplars are meant.
        run: the run's folder.
        size: of the pictures.
    """

    def __init__(self, spec: NetworkSpec, layer: str, statistic: str, run: str, size: int) -> None:
        self._preprocess, self._layer, self._statistic, self._size = spec.preprocess, layer, statistic, size
        self._run = RunFolder(run)
        module = network_of(spec).module
        self.passages: tuple[Layer, ...] = passages(module, layer, spec.preprocess)
        """The layers before it that are looked at."""
        kind = Trunk if spec.channels_last else ContiguousTrunk
        self._trunk = kind(module, self.passages, ("mean",), spec.preprocess, torch.device("cpu"))
        # Groups of other pictures of the same channels come next.
        self._exemplars = lru_cache(maxsize=_KEPT_CHANNELS)(self._seen_exemplars)
        self._others = lru_cache(maxsize=1)(lambda: self._seen(of_others(self._run, layer, statistic)))

    def digest(self, channel: int) -> str:
        """Return what tells a channel's exemplars from others, see `ranked.digests`."""
        return self._exemplars(channel)[0]

    def paths(self, channel: int, pictures: Sequence[np.ndarray]) -> list[Path] | None:
        """Compare pictures' paths with those of a channel's exemplars; None where there is too little to compare with.

        Args:
            pictures: uint8 [size, size, colours] each.
        """
        top = self._exemplars(channel)[1]
        random = self._random(top)[:_COMPARED]
        if not self.passages or not top or not random:
            return None
        profiles = [self._profile(picture) for picture in pictures]
        return paths(_by_layer(profiles), *(_by_layer([image.profile for image in of]) for of in (top, random)))

    def looks(self, channel: int) -> list[Description]:
        """Describe a channel's strongest exemplars."""
        return [describe(_coloured(image.crop)) for image in self._exemplars(channel)[1][:_DESCRIBED]]

    def facets(self, channel: int, count: int) -> list[Facet]:
        """Find the facets of a channel, in the last of the passages.

        Raises:
            ShardError: there is no passage, or its exemplars that can be decoded are fewer.
        """
        _, images = strongest(self._run, self._layer, self._statistic, channel, _CLUSTERED)
        top = self._seen(images)
        if not self.passages:
            raise ShardError(f"no layer is known that all of '{self._layer}' comes through, to find facets in")
        if len(top) < count:
            raise ShardError(f"channel {channel} has {len(top)} exemplars that can be decoded, fewer than facets")
        of_top, of_random = (np.array([one.profile[-1] for one in of]) for of in (top, self._random(top)))
        starts = [as_start(image.part, self._size) for image in top]
        return facets(self.passages[-1], of_top, of_random, starts, count)

    def _seen_exemplars(self, channel: int) -> tuple[str, list[NaturalImage]]:
        digest, images = strongest(self._run, self._layer, self._statistic, channel, _COMPARED)
        return digest, self._seen(images)

    def _random(self, top: Sequence[NaturalImage]) -> list[NaturalImage]:
        """Return images that are none of a channel's exemplars."""
        own = {image.place for image in top}
        return [image for image in self._others() if image.place not in own]

    def _seen(self, images: Sequence[RankedImage]) -> list[NaturalImage]:
        seen = []
        for image in images:
            try:
                crop = decode_and_crop(image.data, self._preprocess)
            except UndecodableImageError:
                # What the decoder of the machine that scanned it took, this one's does not.
                continue
            part = part_around(crop, image.peak, self._size)
            seen.append(NaturalImage(image.place, crop, part, self._profile(part)))
        return seen

    def _profile(self, pixels: np.ndarray) -> list[np.ndarray]:
        if not self.passages:
            return []
        activations = self._trunk(torch.tensor(pixels[None])).activations
        return [activations[layer.name, "mean"][0].double().numpy() for layer in self.passages]


def _by_layer(profiles: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """Put images' profiles together: of each passage float64 [images, channels]."""
    return [np.stack(of_layer) for of_layer in zip(*profiles, strict=True)]


def _coloured(crop: np.ndarray) -> np.ndarray:
    return np.repeat(crop, 3, axis=2) if crop.shape[2] == 1 else crop
