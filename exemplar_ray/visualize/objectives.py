"""What pictures are made for: a number of each that is to become large.

An objective is one function in `OBJECTIVES`, for the statistic of that name: what channels are ranked by, but of
what a layer is before its ReLU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exemplar_ray.network.layouts import Reading

# How much a picture that is just like another of its channel's loses of its value.
_DIVERSITY = 1.0


def _mean(reading: Reading) -> Tensor:
    return reading.maps.mean(dim=(2, 3)) if reading.maps.dim() == 4 else reading.maps


def _center(reading: Reading) -> Tensor:
    maps = reading.maps
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2] if maps.dim() == 4 else maps


def _max(reading: Reading) -> Tensor:
    return reading.maps.amax(dim=(2, 3)) if reading.maps.dim() == 4 else reading.maps


def _class_token(reading: Reading) -> Tensor:
    if reading.prefix is None:
        raise ValueError("the layer has no class token")
    return reading.prefix[:, 0]


OBJECTIVES: dict[str, Callable[[Reading], Tensor]] = {
    "mean": _mean,
    "center": _center,
    "max": _max,
    "cls": _class_token,
}
"""{statistic: from a layer before its ReLU to [pictures, channels]}"""


def alikeness(reading: Reading) -> Tensor:
    """Return how much each picture is like the others: [pictures], the mean cosine of the Gram matrices of their maps.

    The diversity term of Lucid (optvis/objectives.py: diversity), of one channel's pictures only.
    """
    maps = reading.maps.flatten(2) if reading.maps.dim() == 4 else reading.maps.unsqueeze(2)
    grams = torch.einsum("pcu,pdu->pcd", maps, maps).flatten(1)
    grams = torch.nn.functional.normalize(grams, dim=1, eps=1e-10)
    cosines = grams @ grams.T
    others = max(len(cosines) - 1, 1)
    return (cosines.sum(dim=1) - cosines.diagonal()) / others


def worth(values: Tensor, reading: Reading, diverse: bool) -> Tensor:
    """Return what is to become large, [pictures]: values, of which each loses the more, the more it is like others."""
    if not diverse:
        return values
    return values - _DIVERSITY * values.detach().abs() * alikeness(reading)
