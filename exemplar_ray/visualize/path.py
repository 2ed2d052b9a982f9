"""Whether a picture takes the same path as natural images through the layers before its own.

After Geirhos et al. 2024 (arXiv 2306.04719), who compare a visualisation with images of its class; here it is the
channel's own exemplars that it is compared with, and images that other channels answer to give the scale. In a layer l

    s_l = (rho(picture, top) - rho(random, top)) / (rho(top, top') - rho(random, top))

where rho is the mean of Spearman's rank correlations, over the layer's channels, of how much each answers on average
over its map. It is 1 for what is like the exemplars as they are like each other, and 0 for what is as unlike them as a
random image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exemplar_ray.rank_correlation import rank_correlations

# Where exemplars are no more like each other than like random images, by so much, there is no path to be told from
# others.
_LEAST_APART = 0.05
_FEWEST = 2


class Path(NamedTuple):
    """What a picture's path is like."""

    similarities: list[float | None]
    """Of each layer; None where its exemplars tell no path from others."""

    @property
    def similarity(self) -> float | None:
        """The median of those that there are."""
        known = [value for value in self.similarities if value is not None]
        return float(np.median(known)) if known else None


def paths(pictures: Sequence[np.ndarray], top: Sequence[np.ndarray], random: Sequence[np.ndarray]) -> list[Path] | None:
    """Compare pictures' paths with those of a channel's exemplars; None where these or random images are too few.

    Args:
        pictures: of each layer, how much its channels answer on average: float [pictures, channels].
        top: the same of the channel's exemplars.
        random: the same of random images, none of them an exemplar of the channel.
    """
    if not top or len(top[0]) < _FEWEST or len(random[0]) < _FEWEST:
        return None
    of_layers = [_similarities(*of_layer) for of_layer in zip(pictures, top, random, strict=True)]
    return [Path([None if of is None else of[number] for of in of_layers]) for number in range(len(pictures[0]))]


def _similarities(pictures: np.ndarray, top: np.ndarray, random: np.ndarray) -> list[float] | None:
    among = rank_correlations(top, top)[~np.eye(len(top), dtype=bool)].mean()
    of_random = rank_correlations(random, top).mean()
    if not among - of_random >= _LEAST_APART:
        return None
    of_pictures = rank_correlations(pictures, top).mean(axis=1)
    return [float(value) for value in (of_pictures - of_random) / (among - of_random)]
