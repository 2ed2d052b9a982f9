"""Samples that are drawn by priority from the same images for all channels. Numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from exemplar_ray.exemplars.samples import SampledImages, draw, sampled_images
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, NO_LABEL, TOP, Scores, concatenate
from exemplar_ray.network.layers import Layer


class DrawnSamples(NamedTuple):
    """What is drawn: parallel names, ranks and scores; and who stands at the bands' edges."""

    samples: list[str]
    ranks: np.ndarray
    scores: Scores
    at_edges: Scores


class SamplePool:
    """The images that samples are drawn from, with their activations.

    Args:
        sampled: what the merge kept of them.
    """

    def __init__(self, spec: ExemplarsSpec, sampled: SampledImages) -> None:
        self._spec = spec
        self._images = sampled.lowest(sampled_images(spec.top_k))

    def draw(self) -> DrawnSamples:
        """Draw from what is known now."""
        drawn, edges = [Scores.empty()], [Scores.empty()]
        names: list[str] = []
        ranks = [np.empty(0, np.int64)]
        for number, (layer, _) in enumerate(self._spec.readouts):
            of_readout = list(draw(self._images.activations[number], self._spec.drawn_samples, self._spec.top_k))
            names += [sample.sample for sample in of_readout for _ in sample.images]
            ranks += [np.arange(1, len(sample.images) + 1) for sample in of_readout]
            drawn.append(self._scores(number, layer, [(sample.channel, sample.images) for sample in of_readout]))
            edges.append(self._scores(number, layer, [(sample.channel, sample.at_edges) for sample in of_readout]))
        return DrawnSamples(names, np.concatenate(ranks), concatenate(drawn), concatenate(edges))

    def _scores(self, readout: int, layer: Layer, wanted: list[tuple[int, np.ndarray]]) -> Scores:
        """Return images of the pool as scores: [(channel's index, images' indices)] one after another."""
        images = np.concatenate([np.empty(0, np.int64), *(images for _, images in wanted)])
        channel = np.repeat([channel for channel, _ in wanted], [len(images) for _, images in wanted]).astype(np.int64)
        return Scores(
            readout=np.full(len(images), readout, np.int32),
            ranking=np.full(len(images), TOP, np.int8),
            label=np.full(len(images), NO_LABEL, np.int64),
            channel=np.array(layer.channels, np.int32)[channel],
            activation=self._images.activations[readout][images, channel],
            shard=self._images.shard[images],
            row=self._images.row[images],
        )

    def correct(self, exact: Scores) -> None:
        """Put recomputed activations in the place of the scan's."""
        exact = exact.take(exact.ranking != NEAR_ZERO)
        pool = self._images
        index = {(int(s), int(r)): i for i, (s, r) in enumerate(zip(pool.shard, pool.row, strict=True))}
        at = np.array([index.get((int(s), int(r)), -1) for s, r in zip(exact.shard, exact.row, strict=True)], np.int64)
        for number, (layer, _) in enumerate(self._spec.readouts):
            which = np.flatnonzero((at >= 0) & (exact.readout == number))
            channel = np.searchsorted(layer.channels, exact.channel[which])
            pool.activations[number][at[which], channel] = exact.activation[which]
