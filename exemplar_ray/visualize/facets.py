"""Facets: the several things that one channel is about, each with a picture of its own.

A channel's exemplars are clustered by what a layer before makes of them, and each cluster has a picture that begins as
one of its images and is held near it. That is faceted feature visualisation (Goh et al. 2021, Multimodal Neurons in
Artificial Neural Networks) where the facets are not given but found: what is to become large is

    v(x) + w |v(x)| cos(a(x) - m, c - m)

where v is the channel's own objective, a what the layer's channels answer on average over their maps, each divided by
its deviation over natural images, c the mean of a over the cluster's images, and m that over all of the exemplars.
|v| counts as a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.network.layers import Layer

_WEIGHT = 1.0
_ROUNDS = 50


@dataclass(frozen=True)
class Facet:
    """One of the things that a channel is about."""

    layer: Layer
    """The layer before, in which it was found."""
    images: tuple[int, ...]
    """Which of the channel's exemplars, counted from 0, the strongest first."""
    start: np.ndarray | None
    """The image that is nearest to their middle, uint8 [size, size, 3]; None to begin from noise."""
    middle: np.ndarray
    """m, float64 [channels of that layer]"""
    towards: np.ndarray
    """c - m, the same."""
    deviation: np.ndarray
    """What they are divided by."""


def clusters(values: np.ndarray, count: int) -> list[list[int]]:
    """Put rows into clusters, none of them empty: k-means, always with the same outcome.

    The first row is the first middle, each further one the row that is farthest from those before.

    Args:
        values: float64 [rows, numbers], at least as many rows as clusters.

    Returns:
        The rows of each cluster, ascending; the cluster of the first row is the first, and so on.
    """
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(_squared(values, values[chosen]).min(axis=1).argmax()))
    middles, of = values[chosen], np.full(len(values), -1)
    for _ in range(_ROUNDS):
        distances = _squared(values, middles)
        now = distances.argmin(axis=1)
        for empty in set(range(count)) - set(now.tolist()):
            # It takes the row that is farthest from its own middle, of those that are not alone.
            own = distances[np.arange(len(values)), now]
            own[np.bincount(now, minlength=count)[now] == 1] = -1
            now[int(own.argmax())] = empty
        if (now == of).all():
            break
        of = now
        middles = np.stack([values[of == number].mean(axis=0) for number in range(count)])
    return sorted(np.flatnonzero(of == number).tolist() for number in range(count))


def _squared(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    return ((ones[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)


def facets(
    layer: Layer, profiles: np.ndarray, random: np.ndarray, starts: Sequence[np.ndarray], count: int
) -> list[Facet]:
    """Find the facets of a channel.

    Args:
        layer: the layer before.
        profiles: a, of the exemplars, the strongest first: float64 [exemplars, channels of the layer before].
        random: the same of other images.
        starts: of each exemplar, what a picture may begin as: uint8 [size, size, 3].
    """
    deviation = np.concatenate([profiles, random]).std(axis=0)
    # A channel that answers to nothing tells nothing.
    deviation = np.where(deviation > 0, deviation, np.inf)
    values = profiles / deviation
    middle = values.mean(axis=0)
    found = []
    for images in clusters(values, count):
        centre = values[images].mean(axis=0)
        nearest = images[int(_squared(values[images], centre[None]).argmin())]
        found.append(Facet(layer, tuple(images), starts[nearest], middle, centre - middle, deviation))
    return found


class Held:
    """What holds pictures near their facets.

    Args:
        of: the facet of each picture, all found in the same layer.
    """

    def __init__(self, of: Sequence[Facet], device: torch.device) -> None:
        self.layer = of[0].layer

        def stacked(values: list[np.ndarray]) -> Tensor:
            return torch.tensor(np.stack(values), dtype=torch.float32, device=device)

        self._middle, self._towards, self._deviation = (
            stacked([getattr(facet, name) for facet in of]) for name in ("middle", "towards", "deviation")
        )

    def worth(self, values: Tensor, answers: Tensor) -> Tensor:
        """Return what is to become large, [pictures].

        Args:
            values: v, [pictures]
            answers: what the layer's channels answer on average, [pictures, channels].
        """
        near = torch.nn.functional.cosine_similarity(answers / self._deviation - self._middle, self._towards, dim=1)
        return values + _WEIGHT * values.detach().abs() * near
