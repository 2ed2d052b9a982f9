"""A run's images as a network sees them between two layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exemplar_ray.circuits.anatomy import Anatomy
from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.before import Before
from exemplar_ray.network.tape import record
from exemplar_ray.network.trunk import to_input
from exemplar_ray.runs.ranked import RankedImage

_IMAGES_AT_ONCE = 10


class Between(NamedTuple):
    """What a network does to some images between two layers."""

    images: list[RankedImage]
    inputs: Tensor
    """float32 [images, channels of the layer before, ...]"""
    values: Tensor
    """float32 [images, channels, ...]: what the layer is before its ReLU, by the network's own forward pass."""


def between(anatomy: Anatomy, before: Before, images: Sequence[RankedImage], preprocess: Preprocess) -> Between | None:
    """Run a network on images; those that cannot be decoded here are left out. None where that leaves none."""
    decoded, crops = [], []
    for image in images:
        try:
            crops.append(torch.tensor(decode_and_crop(image.data, preprocess)))
        except UndecodableImageError:
            continue
        decoded.append(image)
    if not decoded:
        return None
    inputs, values = [], []
    for few in torch.stack(crops).split(_IMAGES_AT_ONCE):
        kept = record(anatomy.module, to_input(few, preprocess), keep=[before.value, *before.piece.after]).kept
        inputs.append(kept[before.value])
        values.append(torch.cat([kept[value] for value in before.piece.after], dim=1))
    return Between(decoded, torch.cat(inputs), torch.cat(values))
