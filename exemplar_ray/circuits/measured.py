"""How often each unit between two layers fires, measured on real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exemplar_ray.network.affine import Gate, Given, Piece, Recorded
from exemplar_ray.network.tape import Step

_IMAGES_AT_ONCE = 10


def measured_gates(piece: Piece, inputs: Tensor) -> Given:
    """Return the mean gate of each channel, over images and places: of a ReLU how often it is open.

    A pooling by the largest stays the mean of what it pools.

    Args:
        piece: between the two layers.
        inputs: float32 [images, channels of the layer before, ...]
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for batch in inputs.split(_IMAGES_AT_ONCE):
        recorded = _Slopes()
        with torch.no_grad():
            piece(batch, recorded)
        for step, gate in recorded.gates.items():
            slope = gate.slope.double()
            places = [0, *range(2, slope.dim())]
            sums[step] = sums.get(step, 0) + slope.sum(dim=places, keepdim=True)
            counts[step] = counts.get(step, 0) + slope.numel() // slope.shape[1]
    return Given({step: Gate((total / counts[step]).float()) for step, total in sums.items()})


class _Slopes(Recorded):
    """Keeps the gates that have a mean, but those of poolings."""

    def of(self, step: Step, kind: str, given: Any) -> Gate | None:
        gate = super().of(step, kind, given)
        if kind == "pool":
            del self.gates[id(step)]
        return gate
