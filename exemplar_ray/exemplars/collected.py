"""What the scan collected of some images: of a piece of a shard, or of several pieces. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.samples import SampledImages
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, TOP, Scores, merge


class Collected(NamedTuple):
    """See the module."""

    part: Part
    not_finite: Sequence[np.ndarray]
    """How many activations are NaN or infinite, of each readout: int64 [channels]."""

    def joined(self, following: Collected, spec: ExemplarsSpec) -> Collected:
        """Return what these images and those of the pieces that follow give together.

        Candidates and counts are those of all images, however these were cut; sums depend in their last bits on where,
        so pieces are joined one by one, in order.
        """
        one, other = self.part, following.part
        tallies = {
            name: [mine.merge(more) for mine, more in zip(of_readouts, other.tallies[name], strict=True)]
            for name, of_readouts in one.tallies.items()
        }
        part = Part(
            scores=_nearest_where_strongest_are_0(merge([one.scores, other.scores], candidates_kept(spec))),
            tallies=tallies,
            sampled=SampledImages.join([one.sampled, other.sampled]),
        )
        if one.spectrum is not None and other.spectrum is not None:
            part = replace(part, spectrum=one.spectrum.merge(other.spectrum))
        return Collected(part, [a + b for a, b in zip(self.not_finite, following.not_finite, strict=True)])

    def of_channels_not_finite(self, spec: ExemplarsSpec) -> list[dict[str, object]]:
        """Return what a completion record says of channels that gave NaN or infinity:
        [{"layer", "statistic", "channel", "images"}]."""
        return [
            {"layer": layer.name, "statistic": statistic, "channel": channel, "images": count}
            for (layer, statistic), counts in zip(spec.readouts, self.not_finite, strict=True)
            for channel, count in zip(layer.channels, counts.tolist(), strict=True)
            if count
        ]


def _nearest_where_strongest_are_0(scores: Scores) -> Scores:
    """Leave out `NEAR_ZERO` of channels whose strongest no longer go down to 0."""
    key = scores.readout.astype(np.int64) << 32 | scores.channel
    down_to_0 = key[(scores.ranking == TOP) & (scores.activation == 0)]
    return scores.take((scores.ranking != NEAR_ZERO) | np.isin(key, down_to_0))
